-- As find_in_block, for queries without tags: each trace with its latest matching start.
SELECT spans.trace, max(spans.start_time)
FROM spans CROSS JOIN operations ON operations.id = spans.operation
WHERE spans.id BETWEEN :first AND :last
  AND spans.start_time BETWEEN :since AND :until
  AND max(0, spans.end_time - spans.start_time) BETWEEN :min_duration AND :max_duration
  AND (:service IS NULL
       OR operations.service = (SELECT id FROM services WHERE name = :service))
  AND (:operation IS NULL OR operations.name = :operation)
GROUP BY spans.trace
