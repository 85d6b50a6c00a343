SELECT resource, scope, message
FROM logs
WHERE trace_id = :trace_id AND internal = 0
ORDER BY time, id
LIMIT :limit
