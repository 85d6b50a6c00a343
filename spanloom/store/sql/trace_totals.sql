-- Open spans count as those that have ended, and end where they were last seen.
WITH members AS (
    SELECT start_time, end_time, status, input_tokens, output_tokens, cost_usd, 0 AS open
    FROM spans
    WHERE trace = :trace
    UNION ALL
    SELECT start_time, max(start_time, coalesce(missing_since, processes.time)), 0,
           input_tokens, output_tokens, cost_usd, 1
    FROM open_spans JOIN processes ON processes.id = open_spans.process
    WHERE trace = :trace
)
SELECT (SELECT trace_id FROM traces WHERE id = :trace),
       min(start_time), max(end_time), count(*), sum(status = 2),
       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), sum(cost_usd),
       sum(open)
FROM members
