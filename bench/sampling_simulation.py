"""What head and tail sampling keep of the traces that matter, at each scale.

    python bench/sampling_simulation.py             # under a minute
    python bench/sampling_simulation.py --write     # docs/scaling.md

A gateway's traffic is simulated request by request (a seed makes it repeatable); what is assumed of
it stands in bench/sampling/traffic.py. Tables go to stdout, progress to stderr.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from overhead.report import Table, write
from sampling.plans import Budget, Outcome, one_gateways_traffic, outcome
from sampling.samplers import Head, HeadThenTail, Sampler
from sampling.traffic import KINDS

DOCUMENT = Path(__file__).parents[1] / "docs/scaling.md"
SCALES = (100, 1_000, 10_000, 100_000, 1_000_000)
ASKED_OF_GATEWAY = 1_000.0
"""Requests a second that one gateway gets; below that there is one."""
HEAD_OF_BOTH = 0.5
HEADER = (
    *("requests/s", "sampler", "spans stored/s", "of all", "gateways", "traces waiting in one"),
    *(kind.name for kind in KINDS),
)


def percent(share: float) -> str:
    """Few digits, and never 100 % or 0 % for what is not."""
    for digits in (0, 1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in {0.0, 100.0} or share in {0.0, 1.0}:
            return f"{text} %"
    return "~0 %" if share < 0.5 else "~100 %"


def row(
    requests: int, name: str, budget: Budget, gateways: int | None, found: Outcome
) -> list[str]:
    """One line of the table."""
    return [
        f"{requests:,}",
        name,
        f"{found.stored * requests * budget.spans_per_request:,.0f}",
        percent(found.stored),
        "–" if gateways is None else f"{gateways:,}",
        "–" if gateways is None else f"{found.waiting:,}",
        *(percent(found.kept[kind.name]) for kind in KINDS),
    ]


def simulate(spans_per_request: float, stored_spans: float, seed: int) -> Table:
    """All scales, all samplers."""
    rows = []
    for requests in SCALES:
        print(f"simulating {requests:,} requests a second", file=sys.stderr)
        budget = Budget(requests, spans_per_request, stored_spans)
        gateways = math.ceil(requests / ASKED_OF_GATEWAY)
        rate = requests / gateways
        seen = one_gateways_traffic(rate, spans_per_request, seed)
        fitting = budget.tail(rate)
        samplers: list[tuple[str, int | None, Sampler]] = [("head", None, budget.head())]
        if budget.share < 1:
            samplers.append(
                (
                    f"head {HEAD_OF_BOTH:.0%}, then tail",
                    gateways,
                    HeadThenTail(Head(HEAD_OF_BOTH), fitting),
                )
            )
            samplers.append(("tail, settings left alone", gateways, budget.tail_by_default()))
        samplers.append(("**tail**", gateways, fitting))
        for name, behind, sampler in samplers:
            found = outcome(sampler.run(seen, np.random.default_rng(seed + 1)), seen)
            rows.append(row(requests, name, budget, behind, found))
    return Table(
        "What is kept whole",
        f"{spans_per_request:g} spans a request; storage takes {stored_spans:,.0f} spans a second. "
        f"A gateway gets {ASKED_OF_GATEWAY:,.0f} requests a second. Shares of each kind; "
        f"seed {seed}.",
        HEADER,
        rows,
    )


def main() -> None:
    """Parse, simulate, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spans-per-request", type=float, default=38.0, metavar="N")
    parser.add_argument("--stored-spans", type=float, default=400_000.0, metavar="N",
                        help="spans that storage takes a second")  # fmt: skip
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--write", action="store_true", help=f"write into {DOCUMENT.name}")
    arguments = parser.parse_args()
    if arguments.spans_per_request < 2 or arguments.stored_spans <= 0:
        parser.error("a request has 2 spans at least, and storage takes some")
    table = simulate(arguments.spans_per_request, arguments.stored_spans, arguments.seed)
    table.show()
    if arguments.write:
        write(DOCUMENT, "sampling", table.markdown())


if __name__ == "__main__":
    main()
