"""`docs/cli.md`, made from the commands' own help texts.

    python -m spanloom.cli.reference > docs/cli.md

A test compares the file with what this prints.
"""

import sys
from collections.abc import Iterator

import typer
from typer.main import get_group

from spanloom.cli.app import app

_WIDTH = 90
_INTRODUCTION = """\
# Command line

`pip install 'spanloom[server]'` brings the `spanloom` command. On a terminal it prints tables and
colours (`NO_COLOR` switches them off), in a pipe plain text, with `--json` JSON.

Exit codes: 0 done, 1 not found or a check failed, 2 wrong usage or configuration;
`spanloom up -- CMD` ends with the exit code of CMD.

This page is made from the help texts: `python -m spanloom.cli.reference > docs/cli.md`.
"""


def reference() -> str:
    """The whole page, the same on every machine."""
    top = typer.Context(get_group(app), info_name="spanloom", terminal_width=_WIDTH)
    return "\n".join([_INTRODUCTION, *_sections(top, "##")])


def _sections(context: typer.Context, level: str) -> Iterator[str]:
    """A command and the commands below it."""
    yield _section(context, level)
    for name, command in getattr(context.command, "commands", {}).items():
        below = typer.Context(command, parent=context, info_name=name, terminal_width=_WIDTH)
        yield from _sections(below, f"{level}#")


def _section(context: typer.Context, level: str) -> str:
    text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
    return f"{level} {context.command_path}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
