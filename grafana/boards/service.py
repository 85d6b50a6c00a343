"""Service overview: rate, errors, duration, and what the log says."""

from grafana_foundation_sdk.builders import dashboard as builders

from grafana.boards.panels import (
    AGENT,
    LOKI,
    PER_SECOND,
    RATIO,
    RED,
    REQUESTS,
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
    share,
    traces_link,
)

_SERVER = f'{SERVICE}, span_kind="SPAN_KIND_SERVER"'


_FAILED = 'status_code="STATUS_CODE_ERROR"'


def dashboard() -> builders.Dashboard:
    """The first page to open: is anything wrong, and since when."""
    made = board("spanloom-service", "Service", "Rate, errors and duration of all requests.")
    made = (
        made.with_panel(
            number(
                "Requests",
                "Requests answered a second.",
                query(rate("agent_requests_total", AGENT)),
                unit=REQUESTS,
                width=5,
            )
        )
        .with_panel(
            number(
                "Errors",
                "Share of answers with 500 and above, over 5 minutes.",
                query(f"max(job:agent_requests:error_ratio5m{{{AGENT}}})"),
                unit=RATIO,
                bad_from=limit("agent:limit:error_ratio"),
                width=5,
            )
        )
        .with_panel(
            number(
                "p95",
                "One request in twenty takes longer; over 5 minutes.",
                query(f"max(job:agent_latency_seconds:p95_5m{{{AGENT}}})"),
                unit=SECONDS,
                bad_from=limit("agent:limit:latency_seconds"),
                width=5,
            )
        )
        .with_panel(
            number(
                "In progress",
                "Requests that have not been answered yet.",
                query(f"sum(agent_active_requests{{{AGENT}}})"),
                width=5,
            )
        )
        .with_panel(
            number(
                "Alerts",
                "Alerts that fire, of anything that Prometheus watches.",
                query('sum(ALERTS{alertstate="firing"}) or vector(0)'),
                bad_from=1,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Agent"))
        .with_panel(
            lines(
                "Requests by status",
                "499 is a caller who hung up, 504 the deadline. The dots are exemplars: a click"
                " opens the trace.",
                query(
                    rate("agent_requests_total", AGENT, "status"),
                    "{{status}}",
                    exemplar=True,
                ),
                unit=REQUESTS,
                stacked=True,
            ).links([traces_link("Failed requests in Jaeger", tags="error=true")])
        )
        .with_panel(
            lines(
                "Errors by endpoint",
                "Share of answers with 500 and above.",
                query(
                    share("agent_requests_total", AGENT, 'status=~"5.."', "endpoint"),
                    "{{endpoint}}",
                ),
                limit_line("agent:limit:error_ratio"),
                unit=RATIO,
            ).links([traces_link("Failed requests in Jaeger", tags="error=true")])
        )
        .with_panel(
            lines(
                "Duration",
                "Quantiles over all endpoints, with exemplars.",
                quantile(0.5, "agent_latency_seconds", AGENT, legend="p50"),
                quantile(0.95, "agent_latency_seconds", AGENT, legend="p95"),
                quantile(0.99, "agent_latency_seconds", AGENT, legend="p99"),
                limit_line("agent:limit:latency_seconds"),
                unit=SECONDS,
            ).links([traces_link("Slow requests in Jaeger", minDuration="10s")])
        )
        .with_panel(
            latency_heatmap(
                "Duration, all requests",
                "How many requests took how long. The dots are exemplars: a click opens the trace.",
                "agent_latency_seconds",
                AGENT,
            )
        )
    )
    return (
        made.with_row(builders.Row("Every service that takes part"))
        .with_panel(
            lines(
                "Calls",
                "Server spans by service and route.",
                query(
                    rate(f"{RED}_calls_total", _SERVER, "service_name, http_route"),
                    "{{service_name}} {{http_route}}",
                    exemplar=True,
                ),
                unit=REQUESTS,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Errors",
                "Share of server spans with an error, by service.",
                query(
                    share(f"{RED}_calls_total", _SERVER, _FAILED, "service_name"),
                    "{{service_name}}",
                ),
                unit=RATIO,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Duration, p95",
                "Server spans by service and route, with exemplars.",
                quantile(
                    0.95,
                    f"{RED}_duration_seconds",
                    _SERVER,
                    ("service_name", "http_route"),
                    "{{service_name}} {{http_route}}",
                ),
                unit=SECONDS,
                width=8,
            )
        )
        .with_row(builders.Row("Log"))
        .with_panel(
            lines(
                "Lines by level",
                "Log lines a second.",
                log_query(
                    f"sum by (detected_level) (rate({{{SERVICE}}}[$__auto]))", "{{detected_level}}"
                ),
                unit=PER_SECOND,
                width=24,
                source=LOKI,
            )
        )
        .with_panel(
            log_lines(
                "Warnings and errors",
                "Open a line: `trace_id` links to its trace.",
                f'{{{SERVICE}}} | detected_level=~"warn|error|fatal|critical"',
            )
        )
    )
