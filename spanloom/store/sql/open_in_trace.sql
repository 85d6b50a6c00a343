-- As trace_spans, for spans that have not ended: these end where they were last seen.
SELECT open_spans.span_id, open_spans.parent_span_id, operations.name, operations.kind,
       open_spans.start_time,
       max(open_spans.start_time, coalesce(open_spans.missing_since, processes.time)),
       0, open_spans.resource, open_spans.scope, open_spans.details,
       open_spans.revision, open_spans.misses, open_spans.process
FROM open_spans
JOIN operations ON operations.id = open_spans.operation
JOIN processes ON processes.id = open_spans.process
WHERE open_spans.trace = :trace
ORDER BY open_spans.start_time, open_spans.span_id
