"""What a rate of requests takes, up to a million a second: Collectors, memory, storage, money.

    python bench/capacity_model.py
    python bench/capacity_model.py --core-hour 0.03 --days 30
    python bench/capacity_model.py --write          # docs/scaling.md

What was measured, what is published by others and what is assumed stands in
bench/sampling/capacity.py, a field each; every field is an option here.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from overhead.report import Table, write
from sampling.capacity import Measured, Plan, Prices, Storage, longest_wait_gib, plan

DOCUMENT = Path(__file__).parents[1] / "docs/scaling.md"
SCALES = (100, 1_000, 10_000, 100_000, 1_000_000)
GROUPS = (Measured, Prices, Storage)


def rounded(value: float) -> str:
    """Two digits count; more would claim to be known."""
    if value >= 100:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def row(one: Plan, measured: Measured) -> list[str]:
    """One line of the table."""
    return [
        f"{one.requests:,.0f}",
        rounded(one.spans),
        rounded(one.wire_mb),
        rounded(one.agent_cores),
        rounded(one.gateway_cores),
        f"{rounded(one.gateway_gib)} ({rounded(longest_wait_gib(one.requests, measured))})",
        f"{100 * one.stored_share:.3g} %",
        rounded(one.stored_spans),
        str(one.kafka_partitions) if one.kafka_partitions else "–",
        str(one.clickhouse_nodes),
        rounded(one.stored_tb),
        rounded(one.log_tb_a_day),
        rounded(one.month_usd),
        rounded(one.usd_per_million_requests),
    ]


HEADER = (
    *("requests/s", "spans/s", "MB/s, gzip", "agents: cores", "gateways: cores"),
    *("gateways: GiB (if no root came)", "spans stored", "stored/s", "Kafka partitions"),
    *("ClickHouse nodes", "stored TB", "logs TB/day", "USD a month", "USD a million requests"),
)


def main() -> None:
    """Parse, calculate, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stored-spans", type=float, default=400_000.0, metavar="N",
                        help="spans that storage takes a second, at most")  # fmt: skip
    for group in GROUPS:
        for field in fields(group):
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=float,
                default=field.default,
                metavar="X",
            )
    parser.add_argument("--write", action="store_true", help=f"write into {DOCUMENT.name}")
    given = vars(parser.parse_args())
    if any(value <= 0 for name, value in given.items() if name != "write"):
        parser.error("every figure is greater than zero")
    measured = Measured(**{field.name: given[field.name] for field in fields(Measured)})
    prices = Prices(**{field.name: given[field.name] for field in fields(Prices)})
    storage = Storage(
        **{field.name: type(field.default)(given[field.name]) for field in fields(Storage)}
    )
    rows = [
        row(plan(requests, given["stored_spans"], measured, prices, storage), measured)
        for requests in SCALES
    ]
    table = Table(
        "What to provide",
        f"Calculated, not measured: {measured.spans_per_request:g} spans a request of "
        f"{measured.span_bytes_gzip:g} bytes compressed; {storage.days} days kept in "
        f"{storage.replicas} copies; storage takes {given['stored_spans']:,.0f} spans a second.",
        HEADER,
        rows,
    )
    table.show()
    if given["write"]:
        write(DOCUMENT, "capacity", table.markdown())


if __name__ == "__main__":
    main()
