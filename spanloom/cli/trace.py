"""`spanloom trace`: one trace as a tree."""

import re
import sys
from typing import Annotated

import typer

from spanloom.cli import options
from spanloom.cli.render import Details, trace_lines
from spanloom.cli.terminal import print_json, stdout
from spanloom.contract import Reader
from spanloom.errors import NotFoundError, QueryError
from spanloom.model import Trace, TraceQuery

_TRACE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_BEGINNING = re.compile(r"[0-9a-f]{4,31}")
_RECENT = 1_000
"""Traces among which the beginning of an id is looked for."""
_NAMED = 5


def trace(
    trace_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Trace id, its beginning, a traceparent, or a link to the trace."
        ),
    ],
    *,
    logs: Annotated[
        bool, typer.Option("--logs", help="Show the log lines under their spans.")
    ] = False,
    attributes: Annotated[
        bool, typer.Option("--attributes", help="Show attributes, events and links.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Go on until everything in it has ended."),
    ] = False,
    url: options.Url = options.DEFAULT_URL,
    db: options.Db = None,
    as_json: options.Json = False,
) -> None:
    """Show one trace: its tree of spans with durations, tokens, cost and how they ended.

    The beginning of an id will do where only one recent trace has it. Spans that have not ended are
    running, stalled (their process is silent) or lost (it went on without them). With --watch a
    terminal shows them grow, a pipe gets a line for each change, and --json waits for the end.

    \b
    Examples:
      spanloom trace 4bf92f3577b34da6a3ce929d0e0e4736
      spanloom trace 4bf92f35 --logs
      spanloom trace 4bf92f35 --watch
      spanloom trace 4bf92f35 --attributes | less
      spanloom trace 4bf92f35 --json > trace.json
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    with options.open_source(url, db) as source:
        found = _find(source, trace_id)
        if watch:
            found = _watched(source, found, quiet=as_json)
        records = source.trace_logs(found.trace_id) if logs else []
    if as_json:
        from spanloom.otlp import logs_to_json  # noqa: PLC0415  # loads protobuf
        from spanloom.server.native_api import summary_json, trace_json  # noqa: PLC0415

        document = {"summary": summary_json(found.summary()), **trace_json(found)}
        if logs:
            document["logs"] = logs_to_json(records)
        print_json(document)
        return
    console = stdout()
    if watch and not console.is_terminal:
        return
    width = console.width if console.is_terminal else None
    for line in trace_lines(found, Details(records, attributes), width):
        console.print(line, soft_wrap=True)


def _watched(source: Reader, first: Trace, *, quiet: bool) -> Trace:
    """The trace once it has ended, shown meanwhile unless that is not wanted."""
    from spanloom.cli.watch import Changes, redraw, until_ended  # noqa: PLC0415  # `--help`

    console = stdout()
    if console.is_terminal and not quiet:
        return redraw(source, first, console)
    changes = Changes()
    last = first
    for last in until_ended(source, first):
        if not quiet:
            for line in changes.since(last):
                console.print(line, soft_wrap=True)
            sys.stdout.flush()
    return last


def _find(source: Reader, text: str) -> Trace:
    text = text.strip().lower()
    whole = _TRACE_ID.search(text)
    trace_id = whole[0] if whole else _from_beginning(source, text)
    found = source.get_trace(trace_id)
    if found is None:
        raise NotFoundError(
            f"there is no trace {trace_id} here; `spanloom traces` lists the recent ones "
            "(a trace appears within a second of the end of its first span, or while that is "
            "still open after two)"
        )
    return found


def _from_beginning(source: Reader, beginning: str) -> str:
    if not _BEGINNING.fullmatch(beginning):
        raise QueryError(
            f"{beginning[:80]!r} is not a trace id: it has 32 hexadecimal characters, of which "
            "the first four or more will do"
        )
    recent = source.find_summaries(TraceQuery(limit=_RECENT))
    matching = [s.trace_id for s in recent if s.trace_id.startswith(beginning)]
    if not matching:
        raise NotFoundError(
            f"no trace among the {len(recent)} most recent ones begins with {beginning}; "
            "`spanloom traces` lists them, older ones need their whole id"
        )
    if len(matching) > 1:
        named = ", ".join(matching[:_NAMED]) + (", …" if len(matching) > _NAMED else "")
        raise NotFoundError(f"{len(matching)} traces begin with {beginning}: {named}")
    return matching[0]
