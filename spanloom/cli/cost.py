"""`spanloom cost estimate`: what a month will cost, from stated prices or from measured tokens."""

import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from spanloom import semconv
from spanloom.cli import estimate as model
from spanloom.cli import options
from spanloom.cli.estimate import Item, Measured, Workload
from spanloom.cli.safe_text import clean
from spanloom.cli.tables import Column, print_table
from spanloom.cli.terminal import print_error, print_json, stdout
from spanloom.errors import MissingExtraError, NotFoundError, QueryError
from spanloom.model import Span, Trace, TraceQuery, Usage

cost = typer.Typer(name="cost", no_args_is_help=True, rich_markup_mode=None)

_SMALLEST = Decimal("0.000001")

_SERVER, _DATABASE, _EMBEDDINGS, _MONITORING = model.FIXED


@cost.callback()
def _cost() -> None:
    """Say what the agent costs.

    \b
    Examples:
      spanloom cost estimate --users 1000 --queries 10
    """  # noqa: D301  # \b is click's mark for "do not rewrap"


def _fixed(item: Item) -> Any:
    return typer.Option(
        f"--{item.name.lower()}",
        parser=options.dollars,
        metavar="USD",
        help=f"A month; by default {item.usd_per_month}: {item.basis}.",
    )


@cost.command(short_help="Dollars a month, from stated prices or measured tokens.")
def estimate(
    *,
    users: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=10**9, help="People who ask.")
    ] = 1_000,
    queries: Annotated[
        int,
        typer.Option(metavar="NUMBER", min=1, max=10**6, help="Questions each of them asks a day."),
    ] = 10,
    days: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=31, help="Days of a month.")
    ] = 30,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who sells the model.  [default: openai]")
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Price the tokens as this model's.  [default: the measured ones, or gpt-4o-mini]",
        ),
    ] = None,
    input_tokens: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, max=10**8, help="Of all model calls of a query.")
    ] = model.INPUT_TOKENS,
    output_tokens: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, max=10**8, help="Of all model calls of a query.")
    ] = model.OUTPUT_TOKENS,
    per_query: Annotated[
        Decimal | None,
        typer.Option(
            "--cost-per-query", parser=options.dollars, metavar="USD", help="Instead of tokens."
        ),
    ] = None,
    server: Annotated[Decimal | None, _fixed(_SERVER)] = None,
    database: Annotated[Decimal | None, _fixed(_DATABASE)] = None,
    embeddings: Annotated[Decimal | None, _fixed(_EMBEDDINGS)] = None,
    monitoring: Annotated[Decimal | None, _fixed(_MONITORING)] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Measure the tokens of a query at this server."),
    ] = None,
    db: options.Db = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Measure only this service's model calls.")
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(parser=options.duration_ns, metavar="TIME", help="Measure only so far back."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, max=1500, help="Measure at most so many traces.")
    ] = 200,
    as_json: options.Json = False,
) -> None:
    """Estimate what a month costs: the model's tokens, and what runs whatever the traffic.

    Tokens are priced by genai-prices and your own price file (SPANLOOM_PRICES), as of today.
    With --url or --db the tokens are those of recent traces, at the cost on their spans.

    \b
    Examples:
      spanloom cost estimate --users 1000 --queries 10
      spanloom cost estimate --users 200 --queries 5 --model gpt-4o --server 0
      spanloom cost estimate --url http://127.0.0.1:16686 --service agent-api
      spanloom cost estimate --url http://127.0.0.1:16686 --model gpt-4o-mini --json
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    workload = Workload(users, queries, days)
    measured = None
    if url is not None or db is not None:
        if per_query is not None:
            raise QueryError("--cost-per-query is stated, --url and --db measure: give one of them")
        measured = _measure(
            _traces(url or "", db, service=service, since=since, limit=limit),
            place=str(db or url),
            service=service,
            provider=provider or model.PROVIDER,
            name=model_name,
        )
        per_query, basis = measured.usd_per_query, _measured_basis(measured, model_name)
    elif service is not None or since is not None:
        raise QueryError("--service and --since are for measuring: say where, by --url or --db")
    elif per_query is not None:
        basis = "as stated"
    else:
        seller, name = provider or model.PROVIDER, model_name or model.MODEL
        per_query = _stated(seller, name, input_tokens, output_tokens)
        basis = f"{input_tokens:,} → {output_tokens:,} tokens of {name} ({seller})"
        basis += f", {_prices_of_today()}"
    items = [
        Item(
            "LLM",
            per_query * workload.queries_per_month,
            f"{_amount(per_query)} USD a query: {basis}",
        ),
        *(
            Item(item.name, item.usd_per_month, f"{item.basis}, {model.AS_OF}")
            if given is None
            else Item(item.name, given, "as stated")
            for item, given in zip(
                model.FIXED, (server, database, embeddings, monitoring), strict=True
            )
        ),
    ]
    if measured is not None and measured.unpriced:
        print_error(
            f"{measured.unpriced:,} of {measured.calls:,} model calls have no price and count as 0:"
            " name a model to price them as (--model), or state theirs in a price file"
            " (SPANLOOM_PRICES, docs/costs.md)"
        )
    if as_json:
        print_json(_document(workload, per_query, items, measured))
    else:
        _print(workload, items, measured)


def _stated(provider: str, name: str, input_tokens: int, output_tokens: int) -> Decimal:
    from spanloom.telemetry.pricing import cost_usd  # noqa: PLC0415  # `--help` stays fast

    dollars = cost_usd(
        provider=provider, model=name, input_tokens=input_tokens, output_tokens=output_tokens
    )
    if dollars is None:
        raise _no_price(provider, name)
    return dollars.normalize()


def _no_price(provider: str, name: str) -> Exception:
    if find_spec("genai_prices") is None:
        return MissingExtraError("cost", "A price for tokens")
    return QueryError(
        f"no price is known for the model {name!r} of {provider!r}: state it in a price file"
        " (SPANLOOM_PRICES, docs/costs.md), or the whole by --cost-per-query"
    )


def _measure(
    traces: Iterable[Trace], *, place: str, service: str | None, provider: str, name: str | None
) -> Measured:
    """Add up what the traces used, priced as the model `name` where one is given."""
    from spanloom.telemetry.pricing import cost_usd  # noqa: PLC0415  # `--help` stays fast

    def tokens_of(span: Span, name: str) -> int:
        value = span.attributes.get(name)
        return value if isinstance(value, int) else 0

    def price(span: Span) -> Decimal | None:
        usage = Usage.of_span(span)
        if name is None and usage.cost_usd is not None:
            return Decimal(str(usage.cost_usd))
        return cost_usd(
            provider=model.provider_of(span) if name is None else provider,
            model=name or model.model_of(span),
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read=tokens_of(span, semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS),
            cache_write=tokens_of(span, semconv.GEN_AI_USAGE_CACHE_WRITE_INPUT_TOKENS),
        )

    if name is not None:
        _stated(provider, name, 1, 1)  # a model without a price is a mistake
    measured = model.measure(traces, service=service, price=price)
    if measured is None:
        what = f"of {clean(service)} " if service else ""
        raise NotFoundError(
            f"no finished trace with model calls {what}is at {place}: ask the service something"
            " first, or leave --url and --db out to estimate from stated tokens"
        )
    return measured


def _traces(
    url: str, db: Path | None, *, service: str | None, since: int | None, limit: int
) -> Iterator[Trace]:
    """The latest traces in which a model was called, each once."""
    found: dict[str, Trace] = {}
    with options.open_source(url, db) as source:
        for operation in sorted(semconv.LLM_OPERATIONS):
            query = TraceQuery(
                service=service,
                tags={semconv.GEN_AI_OPERATION_NAME: operation},
                start_ns=None if since is None else time.time_ns() - since,
                limit=limit,
            )
            found |= {trace.trace_id: trace for trace in source.find_traces(query)}
    newest = sorted(found.values(), key=lambda trace: trace.start_time_unix_nano, reverse=True)
    yield from newest[:limit]


def _measured_basis(measured: Measured, name: str | None) -> str:
    priced = "" if name is None else f", priced as {name}, {_prices_of_today()}"
    tokens = _tokens_of_a_query(measured.usage, measured.queries)
    return f"{tokens} tokens, mean of {measured.queries:,} traces{priced}"


def _tokens_of_a_query(usage: Usage, queries: int) -> str:
    return f"{usage.input_tokens / queries:,.0f} → {usage.output_tokens / queries:,.0f}"


def _cost_of_a_query(usage: Usage, queries: int) -> str:
    return "no price" if usage.cost_usd is None else _amount(Decimal(str(usage.cost_usd)) / queries)


def _amount(dollars: Decimal) -> str:
    """A small amount without the digits of a division."""
    return f"{dollars.quantize(_SMALLEST).normalize():f}"


def _prices_of_today() -> str:
    own = " and SPANLOOM_PRICES" if os.environ.get("SPANLOOM_PRICES") else ""
    return f"genai-prices {version('genai-prices')}{own} on {datetime.now(UTC):%Y-%m-%d}"


def _print(workload: Workload, items: list[Item], measured: Measured | None) -> None:
    console = stdout()
    console.print(
        f"{workload.queries_per_day:,} queries a day ({workload.users:,} users,"
        f" {workload.queries:,} each), {workload.days} days a month\n",
        soft_wrap=True,
    )
    total = sum((item.usd_per_month for item in items), Decimal(0))
    rows = [
        *((item.name, item.usd_per_month, item.basis) for item in items),
        ("Total", total, ""),
    ]
    print_table(
        console,
        (Column("ITEM"), Column("USD A MONTH", "right"), Column("BASIS", shrinks=True)),
        [[Text(name), Text(f"{usd:,.2f}"), Text(clean(basis))] for name, usd, basis in rows],
    )
    if measured is None:
        return
    console.print()
    columns = (
        *(Column("SERVICE"), Column("MODEL", shrinks=True), Column("CALLS A QUERY", "right")),
        *(Column("TOKENS A QUERY", "right"), Column("USD A QUERY", "right")),
    )
    queries = measured.queries
    print_table(
        console,
        columns,
        [
            [
                Text(clean(use.service)),
                Text(clean(use.model)),
                Text(f"{use.calls / queries:.1f}"),
                Text(_tokens_of_a_query(use.usage, queries)),
                Text(_cost_of_a_query(use.usage, queries)),
            ]
            for use in measured.uses
        ],
    )


def _document(
    workload: Workload, per_query: Decimal, items: list[Item], measured: Measured | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "queries_per_day": workload.queries_per_day,
        "days_per_month": workload.days,
        "usd_per_query": float(per_query),
        "items": [
            {"name": item.name, "usd_per_month": float(item.usd_per_month), "basis": item.basis}
            for item in items
        ],
        "usd_per_month": float(sum(item.usd_per_month for item in items)),
    }
    if measured is not None:
        document["measured"] = {
            "queries": measured.queries,
            "unpriced_calls": measured.unpriced,
            "uses": [
                {
                    "service": use.service,
                    "provider": use.provider,
                    "model": use.model,
                    "calls": use.calls,
                    "input_tokens": use.usage.input_tokens,
                    "output_tokens": use.usage.output_tokens,
                    "cost_usd": use.usage.cost_usd,
                }
                for use in measured.uses
            ],
        }
    return document
