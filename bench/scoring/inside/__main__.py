"""Switches a tracer on, runs the scenarios that are named, and writes a line of JSON for each.

    python -m scoring.inside SWITCH SCENARIO…        (with bench/ on the path)

SWITCH is what `scoring.inside.switches` knows, or `module:Name` of an instrumentor. What anybody
else prints goes to stderr; stdout has the lines alone.
"""

import json
import os
import sys
from typing import Any, TextIO

_PACKAGES = ("langgraph", "langchain-core", "opentelemetry-sdk")


def main() -> None:
    switch, *names = sys.argv[1:]
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    from scoring.inside import bench, scenarios, switches  # noqa: PLC0415 - after stdout is safe

    surroundings = bench.Bench()
    prepared = scenarios.compile_early(surroundings)
    try:
        switches.switch_on(switch, surroundings)
    except BaseException as exc:  # noqa: BLE001 - whatever it is, it is what is wrong
        _write(lines, event="broken", why=f"cannot be switched on: {type(exc).__name__}: {exc}")
        return
    _write(lines, event="on", packages=switches.versions(_PACKAGES))
    for name in names:
        _write(lines, event="begin", scenario=name)
        result = surroundings.run(name, scenarios.body_of(name, prepared))
        _write(lines, event="end", result=result)
    # what a tracer leaves running must not keep the process
    lines.flush()
    os._exit(0)


def _write(lines: TextIO, **event: Any) -> None:
    lines.write(json.dumps(event) + "\n")
    lines.flush()


if __name__ == "__main__":
    main()
