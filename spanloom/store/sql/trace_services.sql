SELECT DISTINCT services.name
FROM (
    SELECT operation FROM spans WHERE trace = :trace
    UNION
    SELECT operation FROM open_spans WHERE trace = :trace
) AS members
JOIN operations ON operations.id = members.operation
JOIN services ON services.id = operations.service
ORDER BY services.name
