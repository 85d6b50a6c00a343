SELECT spans.span_id, spans.parent_span_id, operations.name, operations.kind,
       spans.start_time, spans.end_time, spans.status, spans.resource, spans.scope, spans.details
FROM spans JOIN operations ON operations.id = spans.operation
WHERE spans.trace = :trace
ORDER BY spans.start_time, spans.span_id
