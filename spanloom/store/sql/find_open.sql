-- As find_in_block, for spans that have not ended.
SELECT open_spans.trace, open_spans.start_time, 0, operations.kind,
       open_spans.resource, open_spans.scope, open_spans.details
FROM open_spans
JOIN operations ON operations.id = open_spans.operation
JOIN processes ON processes.id = open_spans.process
WHERE open_spans.start_time BETWEEN :since AND :until
  AND max(0, coalesce(open_spans.missing_since, processes.time) - open_spans.start_time)
      BETWEEN :min_duration AND :max_duration
  AND (:service IS NULL
       OR operations.service = (SELECT id FROM services WHERE name = :service))
  AND (:operation IS NULL OR operations.name = :operation)
