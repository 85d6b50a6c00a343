SELECT spans.span_id, spans.parent_span_id, operations.name, operations.kind,
       spans.start_time, spans.end_time, spans.status, spans.resource, spans.scope, spans.details
FROM spans JOIN operations ON operations.id = spans.operation
WHERE spans.trace = (SELECT id FROM traces WHERE trace_id = :trace_id)
  AND spans.span_id = :span_id
