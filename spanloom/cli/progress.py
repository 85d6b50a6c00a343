"""What `spanloom up` says while it works: moving lines on a terminal, plain ones in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from spanloom.cli.safe_text import clean


class Progress:
    """Lines about processes, aligned on the longest name."""

    def __init__(self, console: Console, names: list[str]) -> None:
        self._console = console
        self._width = max(map(len, names), default=0)

    def _line(self, style: str, mark: str, name: str, rest: str) -> Text:
        line = Text()
        if self._console.is_terminal:
            line.append(f"{mark} ", style=style)
        line.append(name.ljust(self._width), style="bold")
        line.append(f"  {rest}")
        return line

    @contextmanager
    def starting(self, name: str, url: str) -> Iterator[Callable[[float], None]]:
        """While a process gets healthy; yields what to call with the seconds so far."""
        if not self._console.is_terminal:
            yield lambda _: None
            return
        with self._console.status(f"{name.ljust(self._width)}  {url}  starting") as status:

            def tick(seconds: float) -> None:
                status.update(f"{name.ljust(self._width)}  {url}  starting, {seconds:.0f} s")

            yield tick

    def healthy(self, name: str, url: str, seconds: float) -> None:
        """A process has become healthy."""
        self._print(self._line("green", "✓", name, f"{url}  healthy in {seconds:.1f} s"))

    def stopped(self, name: str, killed: bool) -> None:
        """A process has ended because it was asked to."""
        if killed:
            self._print(self._line("red", "✗", name, "did not stop in time and was killed"))
        else:
            self._print(self._line("green", "✓", name, "stopped"))

    def output(self, name: str, line: str) -> None:
        """A line a process wrote."""
        self._print(Text.assemble((f"{name.ljust(self._width)} │ ", "dim"), clean(line)))

    def say(self, text: str = "") -> None:
        """A line of our own."""
        self._print(Text(text))

    def _print(self, text: Text) -> None:
        # soft_wrap: a pipe gets whole lines, a terminal wraps them itself and copies them whole
        self._console.print(text, soft_wrap=True)
