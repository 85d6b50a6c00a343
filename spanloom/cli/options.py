"""Options that several commands share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from spanloom import ports
from spanloom.cli.units import parse_bytes, parse_dollars
from spanloom.contract import Reader
from spanloom.errors import ConfigurationError, QueryError
from spanloom.server import query_params

T = TypeVar("T")

DEFAULT_URL = f"http://127.0.0.1:{ports.QUERY_HTTP}"


def _option_parser(parse: Callable[[str], T]) -> Callable[[str], T]:
    def parser(text: str) -> T:
        try:
            return parse(text)
        except (ValueError, QueryError) as error:
            raise typer.BadParameter(str(error)) from None

    return parser


def parse_tags(pairs: Iterable[str]) -> dict[str, str]:
    """Conditions written `key=value`; QueryError names one that is not."""
    tags = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise QueryError(f"--tag {pair!r} is not a condition: write key=value")
        tags[key] = value
    return tags


duration_ns = _option_parser(lambda text: query_params.duration_ns(text, "the time"))
size_bytes = _option_parser(parse_bytes)
dollars = _option_parser(parse_dollars)

Url = Annotated[
    str,
    typer.Option(
        "--url", metavar="URL", envvar="SPANLOOM_URL", help="Address of the server to ask."
    ),
]
Db = Annotated[
    Path | None,
    typer.Option(
        "--db",
        metavar="FILE",
        help="Read this store directly instead, where no server holds it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def open_source(url: str, db: Path | None) -> Iterator[Reader]:
    """The Reader that `--url` or `--db` names, closed at the end."""
    with closing(_reader(url, db)) as reader:
        yield reader


def _reader(url: str, db: Path | None) -> Reader:
    if db is None:
        from spanloom.sources.http import HttpReader  # noqa: PLC0415  # `--help` stays fast

        return HttpReader(url)
    from spanloom.store import STORE_FILE, open_reader  # noqa: PLC0415

    if db.is_dir():  # as --data-dir of `serve` names it
        db = db / STORE_FILE
    if not db.is_file():
        raise ConfigurationError(f"{db} is not a file: --db takes the store's file or its folder")
    return open_reader(db)
