"""`spanloom trace --watch`: one trace until everything in it has ended.

On a terminal the tree is drawn anew every second; in a pipe there is a line for each change.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from spanloom.cli.render import OPEN_STYLES, Details, ending, trace_lines
from spanloom.cli.safe_text import clean
from spanloom.cli.units import local_time
from spanloom.contract import Reader
from spanloom.errors import SourceUnavailableError
from spanloom.model import OpenState, Span, Trace
from spanloom.server.text import duration

EVERY_S: Final = 1.0
QUIET_S: Final = 2.5
"""Nothing open and nothing new for so long is the end: work that has just begun is announced
after a second, and finished spans come in batches."""
_OLD_NS: Final = 10_000_000_000
"""A trace that ended so long ago is not waited for."""
_MARGIN: Final = 2
"""Lines of the terminal that stay free, so that drawing anew does not scroll it."""


def until_ended(
    source: Reader, trace: Trace, on_trouble: Callable[[str], None] = lambda _: None
) -> Iterator[Trace]:
    """A trace as it is now, and again every second until it has ended.

    `on_trouble` is told why there is nothing new while the server does not answer, then "".
    """
    changed = time.monotonic()
    yield trace
    while trace.open_spans or not _is_over(trace, time.monotonic() - changed):
        time.sleep(EVERY_S)
        try:
            now = source.get_trace(trace.trace_id)
        except SourceUnavailableError as error:
            on_trouble(str(error))
            continue
        on_trouble("")
        if now is None:  # retention was faster
            return
        if now != trace:
            changed = time.monotonic()
        trace = now
        yield trace


def _is_over(trace: Trace, quiet_s: float) -> bool:
    return quiet_s >= QUIET_S or time.time_ns() - trace.end_time_unix_nano >= _OLD_NS


def redraw(source: Reader, first: Trace, console: Console) -> Trace:
    """Draw the tree again and again on a terminal; the trace as it ended."""
    last, trouble = first, ""

    def picture() -> Group:
        lines = trace_lines(last, Details(), console.width)
        room = max(console.height - _MARGIN, 1)
        if len(lines) > room:
            lines = _around_what_is_open(last, lines, room)
        note = trouble or "Ctrl-C stops watching."
        return Group(*lines, Text(note, style="yellow" if trouble else "dim"))

    with Live(console=console, auto_refresh=False, transient=True) as live:

        def on_trouble(what: str) -> None:
            nonlocal trouble
            trouble = clean(what)
            live.update(picture(), refresh=True)

        with suppress(KeyboardInterrupt):
            for trace in until_ended(source, first, on_trouble):
                last = trace
                live.update(picture(), refresh=True)
    return last


def _around_what_is_open(trace: Trace, lines: list[Text], room: int) -> list[Text]:
    """As many lines as fit: the headline, and of the rows those up to the last open one."""
    newest = max(
        (number for number, line in enumerate(lines) if _is_open(line)), default=len(lines) - 1
    )
    end = min(max(newest + 1, room - 1), len(lines))
    left_out = len(lines) - room + 1
    more = Text(f"… {left_out:,} of {len(trace.all_spans):,} spans do not fit here", style="dim")
    return [lines[0], more, *lines[max(end - room + 2, 1) : end]]


def _is_open(line: Text) -> bool:
    return line.plain.rstrip().endswith(tuple(state.value for state in OpenState))


class Changes:
    """What is new about a trace since it was looked at, a line for each span."""

    def __init__(self) -> None:
        self._seen: dict[str, OpenState | None] = {}

    def since(self, trace: Trace) -> Iterator[Text]:
        """Lines for spans that came, ended, or whose state changed."""
        open_states = {one.span.span_id: one.state for one in trace.open_spans}
        for span in trace.all_spans:
            state = open_states.get(span.span_id)
            if self._seen.get(span.span_id, "") != state:
                self._seen[span.span_id] = state
                yield _change(span, state)


def _change(span: Span, state: OpenState | None) -> Text:
    word = "ended" if state is None else state.value
    line = Text.assemble(
        (local_time(time.time_ns(), date=False), "dim"),
        "  ",
        (word.ljust(7), "green" if state is None else OPEN_STYLES[state]),
        "  ",
        (clean(span.name) or "(no name)", "bold"),
        "  ",
        (clean(span.service_name), "cyan"),
        f"  {duration(span.duration_ns)}",
        "" if state is None else "+",
    )
    if state is None and (end := ending(span)):
        line.append("  ").append_text(end)
    return line
