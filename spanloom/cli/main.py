"""The `spanloom` command's entry point: errors become one sentence and an exit code.

Exit codes: 0 done, 1 not found or a check failed, 2 wrong usage or configuration.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from io import TextIOWrapper

from spanloom.cli.safe_text import clean_lines
from spanloom.errors import (
    ConfigurationError,
    MissingExtraError,
    QueryError,
    SpanloomError,
)

_EXTRA_MODULES = ("typer", "rich", "httpx2", "orjson", "starlette", "uvicorn", "grpc", "jinja2")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that cannot show a character shows a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    try:
        _require_extra()
        from spanloom.cli.app import app  # noqa: PLC0415  # needs the extra just checked

        app(args=arguments, prog_name="spanloom")
    except (ConfigurationError, MissingExtraError, QueryError) as error:
        _fail(error, 2)
    except SpanloomError as error:
        _fail(error, 1)


def _require_extra() -> None:
    if any(find_spec(module) is None for module in _EXTRA_MODULES):
        raise MissingExtraError("server", "The spanloom command")


def _fail(error: SpanloomError, code: int) -> None:
    sys.stderr.write(f"spanloom: {clean_lines(str(error))}\n")
    sys.exit(code)
