-- Spans of one block that meet every condition a column can answer.
-- CROSS JOIN keeps SQLite from starting at `operations`.
SELECT spans.trace, spans.start_time, spans.status, operations.kind,
       spans.resource, spans.scope, spans.details
FROM spans CROSS JOIN operations ON operations.id = spans.operation
WHERE spans.id BETWEEN :first AND :last
  AND spans.start_time BETWEEN :since AND :until
  AND max(0, spans.end_time - spans.start_time) BETWEEN :min_duration AND :max_duration
  AND (:service IS NULL
       OR operations.service = (SELECT id FROM services WHERE name = :service))
  AND (:operation IS NULL OR operations.name = :operation)
