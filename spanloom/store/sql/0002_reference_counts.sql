-- Schema 2. How many rows share a resource, scope or metric, so that retention can delete those
-- that nobody needs any more. Each start of a process brings a new resource, with new metrics:
-- left behind they would grow without end, and count against the size limit in place of traces.

ALTER TABLE resources ADD COLUMN row_count INTEGER NOT NULL DEFAULT 0;  -- spans, logs, metrics
ALTER TABLE scopes ADD COLUMN row_count INTEGER NOT NULL DEFAULT 0;     -- spans, logs, metrics
ALTER TABLE metrics ADD COLUMN point_count INTEGER NOT NULL DEFAULT 0;

UPDATE resources SET row_count = row_count + used.rows
FROM (SELECT resource, count(*) AS rows FROM (
          SELECT resource FROM spans UNION ALL SELECT resource FROM logs
          UNION ALL SELECT resource FROM metrics
      ) GROUP BY resource) AS used
WHERE used.resource = resources.id;
UPDATE scopes SET row_count = row_count + used.rows
FROM (SELECT scope, count(*) AS rows FROM (
          SELECT scope FROM spans UNION ALL SELECT scope FROM logs
          UNION ALL SELECT scope FROM metrics
      ) GROUP BY scope) AS used
WHERE used.scope = scopes.id;
UPDATE metrics SET point_count = used.rows
FROM (SELECT metric, count(*) AS rows FROM metric_points GROUP BY metric) AS used
WHERE used.metric = metrics.id;

CREATE INDEX resources_unused ON resources (id) WHERE row_count = 0;
CREATE INDEX scopes_unused ON scopes (id) WHERE row_count = 0;
CREATE INDEX metrics_unused ON metrics (id) WHERE point_count = 0;
CREATE INDEX resources_by_service ON resources (service);
