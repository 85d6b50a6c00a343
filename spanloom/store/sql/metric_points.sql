SELECT metrics.resource, metrics.scope, metrics.message, metric_points.message
FROM metrics
JOIN services ON services.id = metrics.service
JOIN metric_points ON metric_points.metric = metrics.id
WHERE metrics.name = :name AND (:service IS NULL OR services.name = :service)
  AND metric_points.time BETWEEN :since AND :until
ORDER BY metric_points.time, metric_points.id
LIMIT :limit
