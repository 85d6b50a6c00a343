"""The score card: what a tracer of LangGraph gets right, scenario by scenario.

    python bench/scorecard.py                               # this library, and no tracer at all
    python bench/scorecard.py --with-peers                  # and three others (make scorecard)
    python bench/scorecard.py --langgraph 1.2.24            # another release of LangGraph
    python bench/scorecard.py --tracer my_tracer:MyInstrumentor --with my-tracer
    python bench/scorecard.py --with-peers --write          # docs/scorecard.md

Each tracer that is not of this project gets a virtual environment in ~/.cache/spanloom-bench (or
$SPANLOOM_BENCH_CACHE), made on first use with uv, or pip where there is none. Tables go to stdout,
progress to stderr. What is judged, and how, is in docs/scorecard.md.

Exit code 0: the card is there; 1: Spanloom missed a scenario; 2: wrong arguments; 3: an
environment could not be made.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from overhead import environments, report
from scoring import show
from scoring.card import SCENARIOS, Scenario
from scoring.run import SECONDS, Result, run
from scoring.tracers import TRACERS, Tracer, named, requirements

DOCUMENT = Path(__file__).parents[1] / "docs/scorecard.md"
OURS = ("none", "spanloom")
NOT_HAD = 3


def main() -> int:
    arguments = _arguments()
    try:
        tracers = _chosen(arguments)
        scenarios = _scenarios(arguments.scenario)
    except LookupError as error:
        show.say(f"scorecard: {error.args[0]}")
        return 2
    results = []
    code = 0
    for tracer in tracers:
        try:
            python = _python(tracer, arguments.langgraph)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error if isinstance(error, OSError) else "see above"
            show.say(
                f"scorecard: {tracer.title} is left out, its environment could not be made"
                f" ({reason}). The package registry has to be reachable for that, and the releases"
                " asked for have to exist; once made, an environment needs no network."
            )
            code = NOT_HAD
            continue
        with _progress(tracer, len(scenarios)) as progress:
            results.append(
                run(tracer, python, scenarios, seconds=arguments.seconds, progress=progress)
            )
    if results:
        _tell(arguments, scenarios, results)
    missed = any(one.tracer.name == "spanloom" and one.points < one.possible for one in results)
    return code or int(missed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tracer",
        action="append",
        metavar="NAME",
        help=f"{', '.join(TRACERS)}, or module:Class of an instrumentor; may be repeated",
    )
    parser.add_argument("--with-peers", action="store_true", help="all tracers that are known")
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        dest="packages",
        metavar="PACKAGE",
        help="what a tracer given as module:Class has to have installed; may be repeated",
    )
    parser.add_argument("--langgraph", metavar="VERSION", help="instead of the one installed here")
    parser.add_argument(
        "--scenario", action="append", metavar="NAME", help="only this one; may be repeated"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="that a scenario may take at most"
    )
    parser.add_argument("--why", action="store_true", help="tell what was wrong in each")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--write", action="store_true", help=f"write to docs/{DOCUMENT.name}")
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Tracer]:
    names = list(arguments.tracer or (TRACERS if arguments.with_peers else OURS))
    if arguments.with_peers:
        names += TRACERS
    return [named(name, arguments.packages) for name in dict.fromkeys(names)]


def _scenarios(names: Sequence[str] | None) -> list[Scenario]:
    known = [scenario.name for scenario in SCENARIOS]
    for name in names or ():
        if name not in known:
            raise LookupError(f"no scenario {name!r}: there are {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not names or scenario.name in names]


def _python(tracer: Tracer, langgraph: str | None) -> Path:
    if tracer.is_here and langgraph is None:
        return Path(sys.executable)
    name = f"scorecard-{tracer.name.replace(':', '.')}" + (f"-{langgraph}" if langgraph else "")
    return environments.build(name, tracer.title, requirements(tracer, langgraph))


@contextlib.contextmanager
def _progress(tracer: Tracer, count: int) -> Iterator[Callable[[str], None]]:
    """A bar for somebody who watches, a line for each tracer in a pipe."""
    if not sys.stderr.isatty():
        show.say(f"{tracer.title}: {count} scenarios")
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  # only where somebody looks
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(tracer.title, total=count)
        begun = 0

        def progress(name: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{tracer.title}: {name}")
            begun += 1

        yield progress


def _tell(
    arguments: argparse.Namespace, scenarios: Sequence[Scenario], results: Sequence[Result]
) -> None:
    tables = show.tables(scenarios, results)
    missed = [one for one in results if one.tracer.name != "none" and one.points < one.possible]
    if arguments.json:
        print(json.dumps(show.as_json(scenarios, results), indent=2, ensure_ascii=False))
    else:
        print(show.facts(results), end="\n\n")
        for table in tables:
            table.show()
        for one in missed if arguments.why else ():
            print(one.tracer.title, *show.why(scenarios, one), sep="\n  ", end="\n\n")
    if arguments.write:
        tables += [show.why_table(scenarios, one) for one in missed]
        texts = [f"{show.facts(results)}.", *(table.markdown() for table in tables)]
        report.write(DOCUMENT, "score card", "\n\n".join(texts))
        show.say(f"written to {DOCUMENT}")


if __name__ == "__main__":
    raise SystemExit(main())
