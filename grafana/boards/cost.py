"""Tokens and dollars: by model, node and tool, and against the budget of an hour."""

from grafana_foundation_sdk.builders import dashboard as builders

from grafana.boards.panels import (
    AGENT,
    COUNT,
    DOLLARS,
    PER_SECOND,
    board,
    limit,
    limit_line,
    lines,
    number,
    quantile,
    query,
    rate,
    rows,
)

_REQUESTS = f"sum(increase(agent_requests_total{{{AGENT}}}[$__range]))"


def _tokens(by: str, metric: str = "agent_tokens_total") -> str:
    return rate(metric, AGENT, by)


def _dollars(by: str, metric: str = "agent_cost_usd_total") -> str:
    return f"3600 * {rate(metric, AGENT, by)}"


def _by_step(metric: str) -> str:
    return f"sum by (node, tool) (increase({metric}{{{AGENT}}}[$__range]))"


def dashboard() -> builders.Dashboard:
    """Who uses tokens, what they cost, and how far the budget is."""
    made = board("spanloom-cost", "Tokens and cost", "Tokens and US dollars of all model calls.")
    made = (
        made.with_panel(
            number(
                "Tokens, last hour",
                "Input and output of all models.",
                query(f"sum(job:agent_tokens:increase1h{{{AGENT}}})"),
                bad_from=limit("agent:limit:tokens_per_hour"),
                width=6,
            )
        )
        .with_panel(
            number(
                "USD, last hour",
                "Model calls with a known price; docs/costs.md says which.",
                query(f"sum(job:agent_cost_usd:increase1h{{{AGENT}}})"),
                unit=DOLLARS,
                bad_from=limit("agent:limit:cost_usd_per_hour"),
                width=6,
            )
        )
        .with_panel(
            number(
                "Tokens for each request",
                "Average over the range on show.",
                query(f"sum(increase(agent_tokens_total{{{AGENT}}}[$__range])) / {_REQUESTS}"),
                width=6,
            )
        )
        .with_panel(
            number(
                "USD for each request",
                "Average over the range on show.",
                query(f"sum(increase(agent_cost_usd_total{{{AGENT}}}[$__range])) / {_REQUESTS}"),
                unit=DOLLARS,
                width=6,
            )
        )
    )
    made = (
        made.with_row(builders.Row("Tokens"))
        .with_panel(
            lines(
                "By model",
                "Tokens a second.",
                query(_tokens("model, type"), "{{model}} {{type}}", exemplar=True),
                unit=PER_SECOND,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "By node",
                "Tokens a second, by the innermost graph node around the call.",
                query(
                    _tokens("node, type", "agent_step_tokens_total"),
                    "{{node}} {{type}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "By tool",
                "Tokens a second of model calls inside tools; none is outside of any.",
                query(
                    _tokens("tool, type", "agent_step_tokens_total"),
                    "{{tool}} {{type}}",
                    exemplar=True,
                ),
                unit=PER_SECOND,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Hour against budget",
                "Tokens of the hour before; the line is where TokenBudgetExceeded fires.",
                query(f"job:agent_tokens:increase1h{{{AGENT}}}", "{{job}}"),
                limit_line("agent:limit:tokens_per_hour"),
                unit=COUNT,
                width=8,
            )
        )
        .with_panel(
            lines(
                "Prompt size, p95",
                "Input tokens of one call, by model. Prompts that grow make everything slower.",
                quantile(
                    0.95,
                    "gen_ai_client_inference_operation_input_tokens",
                    AGENT,
                    ("gen_ai_request_model",),
                    "{{gen_ai_request_model}}",
                ),
                width=8,
            )
        )
        .with_panel(
            lines(
                "Answer size, p95",
                "Output tokens of one call, by model.",
                quantile(
                    0.95,
                    "gen_ai_client_inference_operation_output_tokens",
                    AGENT,
                    ("gen_ai_request_model",),
                    "{{gen_ai_request_model}}",
                ),
                width=8,
            )
        )
    )
    return (
        made.with_row(builders.Row("US dollars"))
        .with_panel(
            lines(
                "By model",
                "Dollars an hour at the present pace.",
                query(_dollars("model"), "{{model}}", exemplar=True),
                unit=DOLLARS,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "By node",
                "Dollars an hour, by the innermost graph node around the call.",
                query(_dollars("node", "agent_step_cost_usd_total"), "{{node}}", exemplar=True),
                unit=DOLLARS,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "By tool",
                "Dollars an hour that tools spend on model calls of their own.",
                query(_dollars("tool", "agent_step_cost_usd_total"), "{{tool}}", exemplar=True),
                unit=DOLLARS,
                width=8,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Hour against budget",
                "Dollars of the hour before; the line is where CostBudgetExceeded fires.",
                query(f"job:agent_cost_usd:increase1h{{{AGENT}}}", "{{job}}"),
                limit_line("agent:limit:cost_usd_per_hour"),
                unit=DOLLARS,
                width=8,
            )
        )
        .with_panel(
            rows(
                "Where it goes",
                "Tokens (A) and dollars (B) of the range on show, by node and tool.",
                query(
                    _by_step("agent_step_tokens_total"),
                    instant=True,
                ),
                query(
                    _by_step("agent_step_cost_usd_total"),
                    instant=True,
                ),
                width=16,
                units_by_column={"Value #B": DOLLARS},
            )
        )
    )
