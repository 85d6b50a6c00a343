"""Tables: coloured and fitted on a terminal, whole and plain in a pipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "
_NARROWEST = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A heading; the one column that `shrinks` gives way where the terminal is narrow."""

    heading: str
    align: Literal["left", "right"] = "left"
    shrinks: bool = False


def print_table(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]]
) -> None:
    """Align the rows under their headings, by cells, since Chinese takes two each.

    A terminal is spared columns in which no row has anything: the others need the room.
    """
    if console.is_terminal:
        filled = [index for index in range(len(columns)) if any(row[index] for row in rows)]
        columns = [columns[index] for index in filled]
        rows = [[row[index] for index in filled] for row in rows]
    widths = [
        max([cell_len(column.heading), *(row[index].cell_len for row in rows)])
        for index, column in enumerate(columns)
    ]
    if console.is_terminal:
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - console.width
        for index, column in enumerate(columns):
            if column.shrinks and excess > 0:
                widths[index] = max(_NARROWEST, widths[index] - excess)
    headings = [Text(column.heading, style="bold") for column in columns]
    for row in (headings, *rows):
        line = Text()
        for index, (column, cell) in enumerate(zip(columns, row, strict=True)):
            fitted = cell.copy()
            fitted.truncate(widths[index], overflow="ellipsis")
            padding = " " * (widths[index] - fitted.cell_len)
            line.append(GAP if index else "")
            line.append_text(Text(padding) + fitted if column.align == "right" else fitted)
            if column.align == "left":
                line.append(padding)
        line.rstrip()
        console.print(line, soft_wrap=True)
