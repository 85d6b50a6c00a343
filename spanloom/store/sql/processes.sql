SELECT processes.id, processes.key, processes.time, processes.arrived_ms, processes.sequence,
       processes.ended, count(open_spans.process),
       coalesce(sum(open_spans.misses >= iif(processes.ended, 0, :lost_after)), 0),
       coalesce(max(open_spans.misses), 0)
FROM processes LEFT JOIN open_spans ON open_spans.process = processes.id
GROUP BY processes.id
ORDER BY processes.key
