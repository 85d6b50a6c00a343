-- The earliest span whose parent is not in the store, or in a trace of cycles the earliest span.
SELECT services.name, operations.name
FROM spans
JOIN operations ON operations.id = spans.operation
JOIN services ON services.id = operations.service
WHERE spans.trace = :trace
ORDER BY
    spans.parent_span_id IS NOT NULL
    AND spans.parent_span_id <> spans.span_id
    AND EXISTS (
        SELECT 1 FROM spans AS parent
        WHERE parent.trace = :trace AND parent.span_id = spans.parent_span_id
    ),
    spans.start_time, spans.span_id
LIMIT 1
