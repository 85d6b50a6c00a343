SELECT (SELECT trace_id FROM traces WHERE id = :trace),
       min(start_time), max(end_time), count(*), sum(status = 2),
       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), sum(cost_usd)
FROM spans
WHERE trace = :trace
