"""The agent from inside: nodes, tools and models; loops."""

from grafana_foundation_sdk.builders import dashboard as builders

from grafana.boards.panels import (
    AGENT,
    AGENT_SPANS,
    COUNT,
    PER_SECOND,
    RATIO,
    RED,
    SECONDS,
    board,
    limit_line,
    lines,
    quantile,
    query,
    rate,
    rows,
    share,
    traces_link,
)

_CALLS = f"{RED}_calls_total"
_DURATION = f"{RED}_duration_seconds"
_NODES = f'{AGENT_SPANS}, gen_ai_operation_name="invoke_node"'
_TOOLS = f'{AGENT_SPANS}, gen_ai_operation_name="execute_tool"'
_MODELS = f'{AGENT_SPANS}, gen_ai_operation_name=~"chat|text_completion|generate_content"'
_RUNS = f'{AGENT_SPANS}, gen_ai_operation_name=~"invoke_workflow|invoke_agent"'
_ENDED_WELL = "ok|interrupted|handoff"
_REQUESTS = f"scalar({rate('agent_requests_total', AGENT)} > 0)"


def _bad(labels: str, by: str) -> str:
    """Share of spans that did not end well; 0 where none did badly."""
    return share(_CALLS, labels, f'spanloom_outcome!~"{_ENDED_WELL}"', by)


def dashboard() -> builders.Dashboard:
    """Which step is slow, fails, or runs too often."""
    made = board("spanloom-agent", "Agent", "Nodes, tools and models of the agent's graph.")
    failed = traces_link("Failed runs in Jaeger", tags="error=true")
    made = (
        made.with_row(builders.Row("Nodes"))
        .with_panel(
            lines(
                "Duration, p95",
                "Graph nodes, one run or one attempt each, with exemplars.",
                quantile(0.95, _DURATION, _NODES, ("gen_ai_node_name",), "{{gen_ai_node_name}}"),
                unit=SECONDS,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Errors",
                "Share of runs that ended in an error, a timeout or a cancellation.",
                query(_bad(_NODES, "gen_ai_node_name"), "{{gen_ai_node_name}}"),
                unit=RATIO,
                width=8,
            ).links([failed])
        )
        .with_panel(
            lines(
                "Runs for each request",
                "Over 1 where a node fans out or the graph loops; a line that climbs is a loop that"
                " does not find its end.",
                query(
                    f"{rate(_CALLS, _NODES, 'gen_ai_node_name')} / {_REQUESTS}",
                    "{{gen_ai_node_name}}",
                ),
                unit=COUNT,
                width=8,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Tools"))
        .with_panel(
            lines(
                "Calls",
                "By tool and how they ended.",
                query(
                    rate("agent_tool_calls_total", AGENT, "tool, status"),
                    "{{tool}} {{status}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Failures",
                "Share of calls over 10 minutes that ended in an error or a timeout.",
                query(f"job_tool:agent_tool_calls:failure_ratio10m{{{AGENT}}}", "{{tool}}"),
                limit_line("agent:limit:tool_failure_ratio"),
                unit=RATIO,
                width=8,
            ).links([failed])
        )
        .with_panel(
            lines(
                "Duration, p95",
                "By tool, with exemplars.",
                quantile(0.95, _DURATION, _TOOLS, ("gen_ai_tool_name",), "{{gen_ai_tool_name}}"),
                unit=SECONDS,
                width=8,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Models"))
        .with_panel(
            lines(
                "Calls",
                "By model, as it was asked for, and how they ended; rate_limit is a 429.",
                query(
                    rate("agent_llm_calls_total", AGENT, "model, status"),
                    "{{model}} {{status}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Refused",
                "Share of calls over 5 minutes that the provider refused with 429.",
                query(f"job_model:agent_llm_calls:rate_limit_ratio5m{{{AGENT}}}", "{{model}}"),
                limit_line("agent:limit:rate_limit_ratio"),
                unit=RATIO,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Duration, p95",
                "By model, with exemplars; retries of the client library are part of it.",
                quantile(
                    0.95, _DURATION, _MODELS, ("gen_ai_request_model",), "{{gen_ai_request_model}}"
                ),
                unit=SECONDS,
                width=6,
            )
        )
        .with_panel(
            lines(
                "Time to first chunk, p95",
                "Of streamed calls. It grows with the prompt, the rest with the answer.",
                quantile(
                    0.95,
                    "gen_ai_client_inference_time_to_first_chunk_seconds",
                    AGENT,
                    ("gen_ai_request_model",),
                    "{{gen_ai_request_model}}",
                ),
                unit=SECONDS,
                width=6,
            )
        )
    )
    return (
        made.with_row(builders.Row("Loops and errors"))
        .with_panel(
            lines(
                "Calls for each request",
                "Model and tool calls of one request, on average.",
                query(f"{rate('agent_llm_calls_total', AGENT)} / {_REQUESTS}", "models"),
                query(f"{rate('agent_tool_calls_total', AGENT)} / {_REQUESTS}", "tools"),
                unit=COUNT,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Runs by outcome",
                "Whole graph runs; interrupted ones wait for a human.",
                query(
                    rate(_CALLS, _RUNS, "spanloom_outcome"),
                    "{{spanloom_outcome}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=8,
            )
        )
        .with_panel(
            rows(
                "Errors by type",
                "The most frequent errors of the range on show, by operation.",
                query(
                    "topk(15, sum by (gen_ai_operation_name, error_type) (increase("
                    f'{_CALLS}{{{AGENT_SPANS}, error_type!=""}}[$__range])))',
                    instant=True,
                ),
                width=8,
            )
        )
    )
