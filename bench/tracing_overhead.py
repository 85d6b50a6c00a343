"""What tracing costs: added CPU a LangGraph run, against the same spans written by hand.

    python bench/tracing_overhead.py                        # this library; about six minutes
    python bench/tracing_overhead.py --with-peers           # and five other tracers
    python bench/tracing_overhead.py --full --with-peers --write    # docs/benchmarks.md
    python bench/tracing_overhead.py --instructions [--write]       # instead of time; valgrind
    python bench/tracing_overhead.py --service --full [--write]     # the whole service, and no more
    python bench/tracing_overhead.py --service --instructions [--write]     # the same by valgrind

Each peer gets a virtual environment in ~/.cache/spanloom-bench (or $SPANLOOM_BENCH_CACHE), made
on first use with uv, or pip where there is none. Tables go to stdout, progress to stderr.
"""

import argparse
import os
from pathlib import Path
from statistics import mean, median

# LangChain sends runs to LangSmith if the environment says so; that is not what is measured.
os.environ["LANGSMITH_TRACING"] = os.environ["LANGCHAIN_TRACING_V2"] = "false"

from overhead import (
    instructions,
    leaks,
    peers,
    report,
    service_instructions,
    side_by_side,
    throughput,
)
from overhead.environments import cache_folder, say
from overhead.in_process import EVERYTHING, Bench, Case, Extras, bytes_per_run
from overhead.statistics_of_pairs import Rounds
from overhead.tracers import PEERS
from overhead.workload import SIZES

DOCUMENT = Path(__file__).parents[1] / "docs/benchmarks.md"
RUN_SIZES = (10, 100, 1000)
SENT = "encoded and all but sent, by hand as well"
EXTRAS: dict[str, Extras] = {
    SENT: frozenset({"sent"}),
    "and Prometheus counters": frozenset({"counters"}),
    "and OpenTelemetry metrics too": frozenset({"counters", "metrics"}),
    "and announcing open spans": frozenset({"in-flight"}),
    "into the spool": frozenset({"spool"}),
    "and a log line a step": frozenset({"log lines"}),
    "all of these": EVERYTHING,
}
SMALL, LARGE = SIZES.values()
BARE_CASES = {
    "10 spans": Case(10, SMALL),
    "10 spans, state of 20 kB": Case(10, LARGE),
    "100 spans": Case(100, SMALL),
    "1,000 spans": Case(1000, SMALL),
}
PEERS_TITLE = "Beside other tracers"
SERVICE_NAMES = {
    throughput.ON: "telemetry on",
    throughput.BY_HAND: "bare SDK floor: the spans alone, by hand",
    throughput.OFF: "telemetry off",
}
HEADER = (
    *("run", "state", "rounds", "no tracing µs", "by hand adds µs", "ours adds µs"),
    *("ratio", "90 %", "best: by hand", "best: ours", "best ratio"),
)


def added(found: Rounds) -> list[str]:
    """The cells for what by hand and ours add, their ratio, and how sure it is."""
    low, high = found.interval()
    return [
        f"{found.added_by_hand:,.0f}",
        f"{found.added_by_us:,.0f}",
        f"**{found.ratio:.2f}**",
        f"{low:.2f} to {high:.2f}",
    ]


def row(name: str, state: str, found: Rounds) -> list[str]:
    by_hand, ours = found.best
    return [
        name,
        state,
        str(len(found.ours)),
        f"{min(found.nothing):,.0f}",
        *added(found),
        f"{by_hand:,.0f}",
        f"{ours:,.0f}",
        f"{ours / by_hand:.2f}",
    ]


def spans_table(seconds: float) -> report.Table:
    rows = []
    for spans in RUN_SIZES:
        for state, size in SIZES.items():
            say(f"spans only: {spans} spans, {state}")
            bench = Bench(spans=spans, state_bytes=size, extras=frozenset(), seconds=seconds)
            rows.append(row(f"{spans:,} spans", state, bench.measure()))
    return report.Table(
        "Spans only, in one process",
        "CPU of all threads, microseconds a run; medians of paired differences, and the quietest"
        " batch of each. The 90 % interval is a bootstrap over the rounds.",
        HEADER,
        rows,
    )


def processes_table(sets: int, seconds: float) -> report.Table:
    cases = {
        **BARE_CASES,
        f"10 spans {SENT}": Case(10, SMALL, EXTRAS[SENT]),
        f"100 spans {SENT}": Case(100, SMALL, EXTRAS[SENT]),
    }
    rows = []
    for name, case in cases.items():
        say(f"in processes of their own: {name}")
        found = side_by_side.measure(case, sets=sets, seconds=seconds)
        rows.append([name, f"{mean(found.nothing):,.0f}", *added(found)])
    return report.Table(
        "Spans only, in processes of their own",
        f"CPU of all threads, microseconds a run. {sets} sets of three processes, which take turns"
        f" for {seconds:g} s; the mean over the sets of each one's quietest"
        f" {side_by_side.QUIETEST:.0%} of batches. The 90 % interval is a bootstrap over the sets.",
        ("run", "no tracing µs", "by hand adds µs", "ours adds µs", "ratio", "90 %"),
        rows,
    )


def extras_table(seconds: float) -> report.Table:
    rows = []
    for name, extras in EXTRAS.items():
        say(f"10 spans, {name}")
        bench = Bench(spans=10, state_bytes=SIZES["64 B"], extras=extras, seconds=seconds)
        rows.append(row(name, "64 B", bench.measure()))
    return report.Table(
        "Spans and what else telemetry does",
        "A run of 10 spans, each row with one thing more, against the spans alone by hand.",
        HEADER,
        rows,
    )


def instructions_table() -> report.Table:
    rows = BARE_CASES | {
        f"10 spans {name}": Case(10, SMALL, extras) for name, extras in EXTRAS.items()
    }
    say("instructions: some minutes")
    found = instructions.count(list(rows.values()))
    return report.Table(
        "Instructions",
        "Thousands a run, counted by valgrind. Most counts come out again within 1 %, some 6 % off,"
        " which moves a ratio by a tenth.",
        ("run", "no tracing", "by hand adds", "ours adds", "ratio"),
        [
            [
                name,
                f"{found[case].nothing / 1000:,.0f}",
                f"{(found[case].by_hand - found[case].nothing) / 1000:,.0f}",
                f"{(found[case].ours - found[case].nothing) / 1000:,.0f}",
                f"**{found[case].ratio:.2f}**",
            ]
            for name, case in rows.items()
        ],
    )


def peers_table(chosen: list[str], rounds: int) -> report.Table:
    sizes = list(SIZES.values())
    found = peers.measure(chosen, sizes, rounds)
    small = sizes[0]
    variants = sorted(
        {variant for variant, _ in found if variant != "nothing"},
        key=lambda variant: peers.added(found, variant, small),
    )
    names = {"by-hand": "by hand", "spanloom": "**Spanloom**"}
    rows = []
    for variant in variants:
        cells = [names.get(variant) or PEERS[variant].name]
        cells.append("" if variant in names else PEERS[variant].requirements[0].partition("==")[2])
        cells.append(str(found[variant, small].spans))
        for size in sizes:
            more = peers.added(found, variant, size)
            cells += [
                f"{more:,.0f}",
                f"{peers.added_median(found, variant, size):,.0f}",
                f"{more / peers.added(found, 'by-hand', size):.1f}",
                f"{found[variant, size].value_bytes:,}",
                f"{found[variant, size].bytes:,}",
            ]
        rows.append(cells)
    return report.Table(
        PEERS_TITLE,
        f"A run of 10 units; every variant in a fresh process a round, {rounds} rounds, each"
        " tracer with its own defaults, ours with its counters. Best of all rounds minus best of"
        " no tracing, and the median of the rounds' differences. Bytes are those of attributes a"
        f" run. Measured {report.today()}.",
        (
            *("tracer", "version", "spans"),
            *(
                f"{state}: {column}"
                for state in SIZES
                for column in ("adds µs", "median", "× by hand", "values", "with keys")
            ),
        ),
        rows,
    )


def promises_table(*, finished: int, cancelled: int) -> report.Table:
    rows = []
    for state, size in SIZES.items():
        values, everything = bytes_per_run(spans=10, state_bytes=size)
        rows.append(
            [f"attribute bytes, 10 spans, {state}", f"{values:,} ({everything:,} with keys)"]
        )
    say(f"leaks: {finished:,} finished and {cancelled:,} cancelled runs")
    started, alive = leaks.count(finished, cancelled)
    rows.append(
        [f"spans alive after {finished:,} finished and {cancelled:,} cancelled runs", f"{alive}"]
    )
    rows.append(["… of spans that began", f"{started:,}"])
    return report.Table(
        "Size and leaks",
        "Attributes of the spans of one run, and spans that are still in memory after many.",
        ("what", "found"),
        rows,
    )


def service_tables(seconds: float) -> list[report.Table]:
    return [
        _service_table(
            seconds,
            throughput.SATURATED,
            "The whole service, with nothing else to do",
            "the offline model, which answers at once",
        ),
        _service_table(
            seconds,
            throughput.PACED,
            "The whole service, with a slow model",
            f"the offline model, which writes {throughput.TOKENS_PER_S} tokens/s to 12 callers",
        ),
    ]


def _service_table(seconds: float, model: str, title: str, described: str) -> report.Table:
    say(f"throughput of the service, model: {model}")
    found = throughput.measure(seconds, model)
    off = found[throughput.OFF]
    rows = [
        [
            name,
            f"{one.rate_ratio(off):.2f}",
            f"{median(one.rates):.1f}",
            f"{max(one.rates):.1f}",
            f"**{one.cpu_ratio(off):.2f}**",
            f"{median(one.cpu):.1f}",
            f"{min(one.cpu):.1f}",
        ]
        for name, one in ((name, found[key]) for key, name in SERVICE_NAMES.items())
    ]
    return report.Table(
        title,
        f"POST /chat, with its 39 spans, to the three processes of the service with {described};"
        " all export to an OTLP sink on loopback that does nothing, or have"
        f" OTEL_SDK_DISABLED=true. {len(off.rates)} rounds that take turns; the ratios are medians"
        " of the rounds' ratios.",
        (
            *("telemetry", "requests a second, ratio", "median", "best"),
            *("CPU a request, ratio", "median ms", "best ms"),
        ),
        rows,
    )


def service_instructions_table() -> report.Table:
    say("instructions of the service: ten minutes")
    found = service_instructions.count()
    off = found[throughput.OFF].total
    return report.Table(
        "The whole service, in instructions",
        "Millions a POST /chat, counted by valgrind in each process, one request at a time.",
        ("telemetry", "retrieval", "model", "API", "together", "ratio", "exports a request"),
        [
            [
                name,
                *(f"{value:,.0f}" for value in found[key][:3]),
                f"{found[key].total:,.0f}",
                f"**{found[key].total / off:.2f}**",
                f"{found[key].exports:.1f}",
            ]
            for key, name in SERVICE_NAMES.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--with-peers",
        nargs="*",
        choices=list(PEERS),
        metavar="PEER",
        help=f"other tracers: all, or some of {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--service", action="store_true", help="the service and its throughput instead"
    )
    parser.add_argument("--full", action="store_true", help="more rounds and more runs")
    parser.add_argument("--write", action="store_true", help=f"write to {DOCUMENT.name}")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions instead (needs valgrind)"
    )
    arguments = parser.parse_args()
    chosen: list[str] | None = arguments.with_peers
    full: bool = arguments.full

    facts = report.machine()
    print(facts, end="\n\n")
    tables = []

    def add(table: report.Table) -> None:
        table.show()
        tables.append(table)

    def save(name: str, *kept: str) -> None:
        if arguments.write:
            texts = [f"{facts}.", *(table.markdown() for table in tables), *filter(None, kept)]
            report.write(DOCUMENT, name, "\n\n".join(texts))
            say(f"written to {DOCUMENT}")

    if arguments.instructions:
        add(service_instructions_table() if arguments.service else instructions_table())
        save(f"{'service' if arguments.service else 'tracing'} instructions")
        return
    if arguments.service:
        for table in service_tables(120 if full else 20):
            add(table)
        save("service overhead")
        return
    add(processes_table(*((12, 5) if full else (3, 3))))
    add(spans_table(25 if full else 6))
    add(extras_table(25 if full else 6))
    add(promises_table(finished=10_000 if full else 1_000, cancelled=1_000 if full else 100))
    if chosen is not None:
        say(f"environments of the peers are in {cache_folder()}")
        add(peers_table(chosen or list(PEERS), 5 if full else 3))
    # each peer needs an environment of its own: not measured every time
    save("tracing overhead", report.kept(DOCUMENT, PEERS_TITLE) if chosen is None else "")


if __name__ == "__main__":
    main()
