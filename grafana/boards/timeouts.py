"""Timeouts: which part of the request's time grows."""

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

from grafana.boards.panels import (
    AGENT,
    COUNT,
    LOKI,
    PER_SECOND,
    RATE,
    RATIO,
    RED,
    SECONDS,
    SERVICE,
    board,
    latency_heatmap,
    limit,
    limit_line,
    lines,
    log_lines,
    log_query,
    number,
    quantile,
    query,
    rate,
    traces_link,
)

_DURATION = f"{RED}_duration_seconds"
PARTS = {
    "LLM": "chat|text_completion|generate_content|embeddings",
    "retrieval": "retrieval",
    "rerank": "rerank",
    "tool": "execute_tool",
}
"""Parts of a request and the operations (`gen_ai.operation.name`) they consist of."""
_TIMEOUTS = f'{SERVICE}, spanloom_outcome="timeout"'
_CUT = f'{AGENT}, status="504"'
QUEUE = "queue and rest"


def _operations(pattern: str) -> str:
    return f'{SERVICE}, gen_ai_operation_name=~"{pattern}"'


def _spent(part: str, window: str) -> str:
    """Seconds that all requests together spend in a part, each second.

    The rest is what graph nodes take and none of the parts does: waiting for a connection, the
    network, another service's queue; and the nodes' own computation.
    """
    if part == QUEUE:
        nodes = f"sum(rate({_DURATION}_sum{{{_operations('invoke_node')}}}[{window}]))"
        named = "|".join(PARTS.values())
        inside = f"sum(rate({_DURATION}_sum{{{_operations(named)}}}[{window}]))"
        return f"clamp_min({nodes} - ({inside} or vector(0)), 0)"
    return f"sum(rate({_DURATION}_sum{{{_operations(PARTS[part])}}}[{window}]))"


def _each_request(part: str, window: str) -> str:
    return f"{_spent(part, window)} / (sum(rate(agent_requests_total{{{AGENT}}}[{window}])) > 0)"


_SHOWN = (*PARTS, QUEUE)


def dashboard() -> builders.Dashboard:
    """From "requests time out" to the part of them that takes the time."""
    made = board(
        "spanloom-timeouts", "Timeouts", "Which part of the request time grows, and what hangs now."
    ).with_variable(
        builders.CustomVariable("baseline")
        .label("Compared with the last")
        .values("1h,6h,1d,7d")
        .current(models.VariableOption(selected=True, text="6h", value="6h"))
    )
    made = (
        made.with_panel(
            number(
                "Cut at the deadline",
                "Share of requests answered with 504.",
                query(
                    f"({rate('agent_requests_total', _CUT)} or vector(0))"
                    f" / ({rate('agent_requests_total', AGENT)} > 0)"
                ),
                unit=RATIO,
                bad_from=limit("agent:limit:error_ratio"),
                width=6,
            )
        )
        .with_panel(
            number(
                "p95",
                "One request in twenty takes longer.",
                quantile(0.95, "agent_latency_seconds", AGENT),
                unit=SECONDS,
                bad_from=limit("agent:limit:latency_seconds"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Past their deadline",
                "Spans that should have been cancelled, and still run.",
                query(f"sum(spanloom_telemetry_overdue_spans{{{AGENT}}})"),
                bad_from=1,
                width=6,
            )
        )
        .with_panel(
            number(
                "Oldest open span",
                "Its age; grows for a process that hangs, too.",
                query(f"max(job_instance:spanloom_open_span:age_seconds{{{AGENT}}})"),
                unit=SECONDS,
                bad_from=limit("agent:limit:open_span_seconds"),
                width=6,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Where the time goes"))
        .with_panel(
            lines(
                "Seconds of one request, by part",
                "Average over all requests. What runs at the same time is added up, so that the sum"
                " may be more than a caller waits.",
                *(query(_each_request(part, RATE), part) for part in _SHOWN),
                unit=SECONDS,
                stacked=True,
            ).links([traces_link("Slow requests in Jaeger", minDuration="10s")])
        )
        .with_panel(
            lines(
                "Growth, by part",
                "Seconds of one request now, divided by the average of the baseline: the part that"
                " stands above 1 is the one that grew.",
                *(
                    query(
                        f"{_each_request(part, RATE)} / ({_each_request(part, '$baseline')})", part
                    )
                    for part in _SHOWN
                ),
                unit=COUNT,
            )
        )
        .with_panel(
            lines(
                "Duration of one call, p95, by part",
                "A call that takes longer, or more calls than before? With exemplars.",
                *(
                    quantile(0.95, _DURATION, _operations(PARTS[part]), legend=part)
                    for part in _SHOWN
                    if part in PARTS
                ),
                unit=SECONDS,
            )
        )
        .with_panel(
            latency_heatmap(
                "Duration, all requests",
                "The dots are exemplars: a click opens the trace.",
                "agent_latency_seconds",
                AGENT,
            )
        )
    )
    made = (
        made.with_row(builders.Row("What hangs, what waits"))
        .with_panel(
            lines(
                "Timeouts, by step",
                "Spans that were cut by a deadline or a timeout, or that found one below.",
                query(
                    rate(f"{RED}_calls_total", _TIMEOUTS, "service_name, span_name"),
                    "{{service_name}} {{span_name}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=8,
            ).links([traces_link("Timeouts in Jaeger", tags="spanloom.outcome=timeout")])
        )
        .with_panel(
            lines(
                "Spans in flight",
                "Sampled spans that have not ended, and those of them past their deadline.",
                query(f"sum(spanloom_telemetry_open_spans{{{AGENT}}})", "open"),
                query(f"sum(spanloom_telemetry_overdue_spans{{{AGENT}}})", "past deadline"),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Oldest open span",
                "By instance; the line is where SpanOpenTooLong fires.",
                query(
                    f"job_instance:spanloom_open_span:age_seconds{{{AGENT}}}",
                    "{{job}} {{instance}}",
                ),
                limit_line("agent:limit:open_span_seconds"),
                unit=SECONDS,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Queue: requests in progress",
                "At the agent, and in every HTTP server behind it: what is too slow piles up.",
                query(f"sum by (job) (agent_active_requests{{{AGENT}}})", "{{job}} (agent)"),
                query(
                    f"sum by (service_name) (http_server_active_requests{{{SERVICE}}})",
                    "{{service_name}}",
                ),
                width=12,
            )
        )
        .with_panel(
            lines(
                "Longest step in the log",
                "By name, from the log's own durations: also where traces are sampled.",
                log_query(
                    f'max by (name) (max_over_time({{{SERVICE}}} |= "step" | duration_ms != ""'
                    " | unwrap duration_ms [$__auto]))",
                    "{{name}}",
                ),
                unit="ms",
                width=12,
                source=LOKI,
            )
        )
    )
    return made.with_row(builders.Row("Log")).with_panel(
        log_lines(
            "Requests that failed, steps that timed out",
            "Open a line: `trace_id` links to its trace.",
            f'{{{SERVICE}}} |~ "chat_error|request_error|step"'
            ' | detected_level=~"warn|error" or outcome="timeout"',
        )
    )
