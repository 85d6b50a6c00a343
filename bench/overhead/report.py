"""The findings as tables: for a terminal, for a pipe, and for docs/benchmarks.md."""

import datetime as dt
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("langgraph", "langchain-core", "opentelemetry-sdk")


@dataclass(frozen=True)
class Table:
    """A table with a title and a sentence or two on how to read it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [
            f"### {self.title}",
            "",
            self.note,
            "",
            _row(self.header),
            _row(["---", *["---:"] * (len(self.header) - 1)]),
            *(_row(row) for row in self.rows),
        ]
        return "\n".join(lines)

    def show(self) -> None:
        if sys.stdout.isatty():
            self._show_rich()
        else:
            print(f"{self.title}\n{self.note}")
            widths = [
                max(len(row[column]) for row in (self.header, *self.rows))
                for column in range(len(self.header))
            ]
            for row in (self.header, *self.rows):
                first, *others = (
                    cell.rjust(width) if column else cell.ljust(width)
                    for column, (cell, width) in enumerate(zip(row, widths, strict=True))
                )
                print("  ".join([first, *others]))
            print(flush=True)

    def _show_rich(self) -> None:
        from rich.console import Console  # noqa: PLC0415  # only where somebody looks
        from rich.table import Table as RichTable  # noqa: PLC0415

        table = RichTable(title=self.title, caption=self.note, title_justify="left")
        for column, name in enumerate(self.header):
            table.add_column(name, justify="right" if column else "left")
        for row in self.rows:
            table.add_row(*row)
        Console().print(table)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def today() -> dt.date:
    """The date of a measurement."""
    return dt.datetime.now(dt.UTC).date()


def machine() -> str:
    """What the numbers depend on."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{today()}, {_processor()}, {os.cpu_count()} cores, load {load}, {platform.system()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def kept(path: Path, title: str) -> str:
    """The table with this title as the page has it, note and all; nothing if it has none."""
    _, found, rest = path.read_text("utf-8").partition(f"### {title}\n")
    table = re.split(r"^(?:#|<!-- end: )", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return f"### {title}\n{table.rstrip()}" if found else ""


def write(path: Path, name: str, text: str) -> None:
    """Put the text between the markers of this name; SystemExit if they are not there."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    page = path.read_text("utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{path} needs the lines {begin} and {end}, once each")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")
