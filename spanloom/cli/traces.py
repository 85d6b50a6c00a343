"""`spanloom traces`: recent traces, one line each."""

import time
from typing import Annotated

import typer
from rich.text import Text

from spanloom.cli import options
from spanloom.cli.safe_text import clean
from spanloom.cli.tables import Column, print_table
from spanloom.cli.terminal import print_json, stderr, stdout
from spanloom.cli.units import local_time
from spanloom.model import TraceQuery, TraceSummary
from spanloom.server.text import cost, duration

_WIDE = 120
"""From here on a terminal has room for whole trace ids; `spanloom trace` takes their beginnings."""
_SHORT_ID = 12
_DAY_NS = 86_400_000_000_000

_COLUMNS = (
    Column("TIME"),
    Column("TRACE"),
    Column("ROOT", shrinks=True),
    Column("DURATION", "right"),
    Column("SPANS", "right"),
    Column("ERRORS", "right"),
    Column("TOKENS", "right"),
    Column("COST", "right"),
    Column("IN FLIGHT", "right"),
)


def traces(
    *,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only traces with spans of it.")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only with a span of this name.")
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", metavar="KEY=VALUE", help="Only with this attribute; may be repeated."
        ),
    ] = None,
    min_duration: Annotated[
        int | None,
        typer.Option(parser=options.duration_ns, metavar="TIME", help="Spans at least this long."),
    ] = None,
    max_duration: Annotated[
        int | None,
        typer.Option(parser=options.duration_ns, metavar="TIME", help="Spans at most this long."),
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only with a failed span.")] = False,
    since: Annotated[
        int | None,
        typer.Option(parser=options.duration_ns, metavar="TIME", help="Begun within this time."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=1500, help="At most this many.")
    ] = 20,
    url: options.Url = options.DEFAULT_URL,
    db: options.Db = None,
    as_json: options.Json = False,
) -> None:
    """List recent traces, newest first: those with one span that meets all conditions.

    \b
    Examples:
      spanloom traces
      spanloom traces --service agent-api --since 1h --min-duration 500ms
      spanloom traces --errors --tag user.id=alice
      spanloom traces --tag spanloom.in_flight=true
      spanloom traces --json | jq -r '.traces[].trace_id'
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    conditions = options.parse_tags(tags or ())
    if errors:
        conditions["error"] = "true"
    query = TraceQuery(
        service=service,
        operation=operation,
        tags=conditions,
        start_ns=None if since is None else time.time_ns() - since,
        min_duration_ns=min_duration,
        max_duration_ns=max_duration,
        limit=limit,
    )
    with options.open_source(url, db) as source:
        found = source.find_summaries(query)
    if as_json:
        from spanloom.server.native_api import summary_json  # noqa: PLC0415  # loads protobuf

        print_json({"traces": [summary_json(summary) for summary in found]})
        return
    console = stdout()
    short = console.is_terminal and console.width < _WIDE
    if found:
        print_table(console, _COLUMNS, [_row(summary, short=short) for summary in found])
    else:
        stderr().print("no traces match", soft_wrap=True)


def _row(summary: TraceSummary, *, short: bool) -> list[Text]:
    tokens = summary.usage.total_tokens
    trace_id = clean(summary.trace_id)
    recent = time.time_ns() - summary.start_time_unix_nano < _DAY_NS
    return [
        Text(local_time(summary.start_time_unix_nano, date=not (short and recent))),
        Text(trace_id[:_SHORT_ID] if short else trace_id, style="bold"),
        Text.assemble((clean(summary.root_service), "cyan"), " ", clean(summary.root_name)),
        Text(duration(summary.duration_ns) + ("+" if summary.open_span_count else "")),
        Text(f"{summary.span_count:,}"),
        Text(f"{summary.error_count:,}" if summary.error_count else "", style="red"),
        Text(f"{tokens:,}" if tokens else ""),
        Text(cost(summary.usage.cost_usd)),
        Text(f"{summary.open_span_count:,}" if summary.open_span_count else "", style="cyan"),
    ]
