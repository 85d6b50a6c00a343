"""The SQL of the SQLite store, one statement per file; `NNNN_name.sql` are the migrations."""

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> str:
    """The text of `name`.sql."""
    return (files(__name__) / f"{name}.sql").read_text(encoding="utf-8")


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Version and text of every migration, in order."""
    found = (entry.name for entry in files(__name__).iterdir() if entry.name[:4].isdecimal())
    return tuple((int(name[:4]), statement(name.removesuffix(".sql"))) for name in sorted(found))
