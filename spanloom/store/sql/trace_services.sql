SELECT DISTINCT services.name
FROM spans
JOIN operations ON operations.id = spans.operation
JOIN services ON services.id = operations.service
WHERE spans.trace = :trace
ORDER BY services.name
