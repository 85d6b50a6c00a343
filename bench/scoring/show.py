"""The card as tables for people, as JSON for programs, and as a page of the documentation."""

import platform
import sys
from collections.abc import Sequence
from typing import Any

from overhead.report import Table, today

from .card import Scenario
from .judge import PROPERTIES, Verdict
from .run import Result

SCHEMA = 1
"""Of the JSON; grows with every change that a reader has to know of."""


def facts(results: Sequence[Result]) -> str:
    """When, and with what."""
    packages = next((one.packages for one in results if one.packages), {})
    with_versions = ", ".join(f"{name} {found}" for name, found in packages.items())
    system = f"Python {platform.python_version()}, {platform.system()}"
    return f"{today()}, {with_versions}, {system}" if packages else f"{today()}, {system}"


def tables(scenarios: Sequence[Scenario], results: Sequence[Result]) -> list[Table]:
    """Scenarios by tracer, and properties by tracer."""
    header = [one.tracer.title for one in results]
    rows = [
        [scenario.title, *(_cell(one.verdicts[index]) for one in results)]
        for index, scenario in enumerate(scenarios)
    ]
    versions = [_version(one) for one in results]
    total = [_total(one) for one in results]
    return [
        Table(
            "Scenarios",
            "yes: all that applies holds; else what does not, by the names of the second table.",
            ("scenario", *header),
            [*rows, ["scenarios held", *total], ["version", *versions]],
        ),
        Table(
            "Properties",
            "In how many scenarios each held, of those in which it applied.",
            ("property", *header),
            [[name, *(_count(one, name) for one in results)] for name in PROPERTIES],
        ),
    ]


def why(scenarios: Sequence[Scenario], result: Result) -> list[str]:
    """What was wrong under one tracer, a line for each property of each scenario."""
    titles = {scenario.name: scenario.title for scenario in scenarios}
    return [
        f"{titles[verdict.scenario]} - {name}: {'; '.join(problems)}"
        for verdict in result.verdicts
        for name, problems in (verdict.problems or {}).items()
    ]


def why_table(scenarios: Sequence[Scenario], result: Result) -> Table:
    """The same for a page: a row for each property, with what was found in the first scenario."""
    titles = {scenario.name: scenario.title for scenario in scenarios}
    found: dict[str, list[tuple[str, str]]] = {}
    for verdict in result.verdicts:
        for name, problems in (verdict.problems or {}).items():
            found.setdefault(name, []).append((titles[verdict.scenario], "; ".join(problems)))
    rows = [
        [name, "; ".join(title for title, _ in places), places[0][1]]
        for name, places in found.items()
    ]
    note = result.broken or f"{result.points} of {result.possible} scenarios held."
    header = ("property", "missed in", "found in the first of these")
    return Table(result.tracer.title, note, header, rows)


def as_json(scenarios: Sequence[Scenario], results: Sequence[Result]) -> dict[str, Any]:
    """Everything, in a form that stays: `schema` says which."""
    return {
        "schema": SCHEMA,
        "date": today().isoformat(),
        "python": platform.python_version(),
        "properties": PROPERTIES,
        "scenarios": [{"name": one.name, "title": one.title} for one in scenarios],
        "tracers": [
            {
                "name": one.tracer.name,
                "title": one.tracer.title,
                "version": one.tracer.version,
                "packages": one.packages,
                "broken": one.broken,
                "held": one.points,
                "of": one.possible,
                "scenarios": {verdict.scenario: _verdict(verdict) for verdict in one.verdicts},
            }
            for one in results
        ],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "held": verdict.held,
        "applied": list(verdict.applied),
        "problems": {name: list(found) for name, found in (verdict.problems or {}).items()},
        "skipped": verdict.skipped,
    }


def _cell(verdict: Verdict) -> str:
    if verdict.skipped is not None:
        return "–"
    return "yes" if verdict.held else ", ".join(verdict.problems or ())


def _total(result: Result) -> str:
    if result.broken is not None:
        return f"0 of {result.possible} (broken)"
    return f"{result.points} of {result.possible}"


def _version(result: Result) -> str:
    return result.tracer.version if result.tracer.name != "none" else ""


def _count(result: Result, name: str) -> str:
    applied = [one for one in result.verdicts if name in one.applied]
    held = sum(name not in (one.problems or {}) for one in applied)
    return f"{held} of {len(applied)}" if applied else "–"


def say(line: str) -> None:
    """Report progress, beside the tables that go to stdout."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
