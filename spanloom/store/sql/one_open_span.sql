-- As one_span, for a span that has not ended: it ends where it was last seen.
SELECT open_spans.span_id, open_spans.parent_span_id, operations.name, operations.kind,
       open_spans.start_time,
       max(open_spans.start_time, coalesce(open_spans.missing_since, processes.time)),
       0, open_spans.resource, open_spans.scope, open_spans.details
FROM open_spans
JOIN operations ON operations.id = open_spans.operation
JOIN processes ON processes.id = open_spans.process
WHERE open_spans.trace = (SELECT id FROM traces WHERE trace_id = :trace_id)
  AND open_spans.span_id = :span_id
