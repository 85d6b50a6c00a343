SELECT name FROM services
WHERE EXISTS (SELECT 1 FROM operations WHERE service = services.id AND span_count > 0)
ORDER BY name
