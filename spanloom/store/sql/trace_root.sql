-- The earliest span whose parent is not in the store, or in a trace of cycles the earliest span.
WITH members AS (
    SELECT span_id, parent_span_id, operation, start_time FROM spans WHERE trace = :trace
    UNION ALL
    SELECT span_id, parent_span_id, operation, start_time FROM open_spans WHERE trace = :trace
)
SELECT services.name, operations.name
FROM members
JOIN operations ON operations.id = members.operation
JOIN services ON services.id = operations.service
ORDER BY
    members.parent_span_id IS NOT NULL
    AND members.parent_span_id <> members.span_id
    AND (
        EXISTS (
            SELECT 1 FROM spans AS parent
            WHERE parent.trace = :trace AND parent.span_id = members.parent_span_id
        )
        OR EXISTS (
            SELECT 1 FROM open_spans AS parent
            WHERE parent.trace = :trace AND parent.span_id = members.parent_span_id
        )
    ),
    members.start_time, members.span_id
LIMIT 1
