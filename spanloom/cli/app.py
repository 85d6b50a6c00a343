"""The list of commands."""

from typing import Annotated

import typer

import spanloom
from spanloom.cli.cost import cost
from spanloom.cli.doctor import doctor
from spanloom.cli.reap import reap
from spanloom.cli.serve import serve
from spanloom.cli.trace import trace
from spanloom.cli.traces import traces
from spanloom.cli.up import up

# rich_markup_mode None: help is plain text that copies, pipes and reads the same everywhere.
app = typer.Typer(
    name="spanloom",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spanloom {spanloom.__version__}")
        raise typer.Exit


@app.callback()
def spanloom_command(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """OpenTelemetry-first tracing for LLM agents.

    \b
    Examples:
      spanloom up                    everything of this checkout, with a request to try
      spanloom up -- python app.py   the trace backend and your own application
      spanloom traces --errors       what went wrong lately
      spanloom trace 4bf92f35        one trace as a tree
      spanloom doctor                is everything in order?
    """  # noqa: D301  # \b is click's mark for "do not rewrap"


app.command(short_help="Backend and processes, or your own command.")(up)
app.command(short_help="The trace backend alone.")(serve)
app.command(short_help="Ends dead processes' spans behind a Collector.")(reap)
app.command(short_help="Recent traces, one line each.")(traces)
app.command(short_help="One trace as a tree.")(trace)
app.add_typer(cost, short_help="What a month costs, estimated.")
app.command(short_help="Is everything in order?")(doctor)
