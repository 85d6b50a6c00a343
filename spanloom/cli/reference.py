"""`docs/cli.md`, made from the commands' own help texts.

    python -m spanloom.cli.reference > docs/cli.md

A test compares the file with what this prints.
"""

import sys

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
    group = get_group(app)
    top = typer.Context(group, info_name="spanloom", terminal_width=_WIDTH)
    parts = [_INTRODUCTION, _section(top, "##")]
    for name, command in group.commands.items():
        context = typer.Context(command, parent=top, info_name=name, terminal_width=_WIDTH)
        parts.append(_section(context, "###"))
    return "\n".join(parts)


def _section(context: typer.Context, level: str) -> str:
    text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
    return f"{level} {context.command_path}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
