SELECT operations.name, operations.kind
FROM operations JOIN services ON services.id = operations.service
WHERE services.name = :service AND operations.span_count > 0
ORDER BY operations.name, operations.kind
