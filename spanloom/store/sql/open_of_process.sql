-- Trace ids and row of each open span of a process; see open_in_trace.
SELECT traces.trace_id,
       open_spans.span_id, open_spans.parent_span_id, operations.name, operations.kind,
       open_spans.start_time,
       max(open_spans.start_time, coalesce(open_spans.missing_since, processes.time)),
       0, open_spans.resource, open_spans.scope, open_spans.details,
       open_spans.revision, open_spans.misses, open_spans.process
FROM processes
JOIN open_spans ON open_spans.process = processes.id
JOIN traces ON traces.id = open_spans.trace
JOIN operations ON operations.id = open_spans.operation
WHERE processes.key = :key AND open_spans.misses >= :min_misses
LIMIT :limit
