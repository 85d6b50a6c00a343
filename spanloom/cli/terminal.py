"""Consoles and the few ways the commands print.

rich never interprets markup: the consoles have it switched off, and text from telemetry goes
through `safe_text.clean` into `Text` objects.
"""

import sys
from typing import Any

from rich.console import Console

from spanloom.cli.safe_text import clean_lines, to_json


def stdout() -> Console:
    """A console on today's sys.stdout; colour by rich's rules (NO_COLOR, FORCE_COLOR, TERM)."""
    return Console(markup=False, highlight=False, emoji=False)


def stderr() -> Console:
    """The same on stderr, for messages and progress."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, uncoloured and unwrapped, flushed."""
    sys.stdout.write(to_json(value, indent=indent) + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """A sentence on stderr."""
    sys.stderr.write(f"spanloom: {clean_lines(message)}\n")
    sys.stderr.flush()
