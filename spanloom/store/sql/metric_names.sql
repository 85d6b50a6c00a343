SELECT DISTINCT metrics.name
FROM metrics JOIN services ON services.id = metrics.service
WHERE (:service IS NULL OR services.name = :service)
  AND EXISTS (SELECT 1 FROM metric_points WHERE metric = metrics.id)
ORDER BY metrics.name
