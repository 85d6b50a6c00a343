"""What the commands that serve in the foreground have in common."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from spanloom.cli.terminal import print_json, stdout
from spanloom.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def reap_after_s(reap_after_ns: int) -> float:
    """`--reap-after` in seconds; ConfigurationError where heartbeats could not keep up with it."""
    from spanloom.server.reaper import LEAST_REAP_AFTER_S  # noqa: PLC0415  # `--help` stays fast

    if reap_after_ns < LEAST_REAP_AFTER_S * 1e9:
        raise ConfigurationError(
            f"--reap-after must be {LEAST_REAP_AFTER_S:g}s or more: heartbeats come once a second"
        )
    return reap_after_ns / 1e9


def tell_ready(addresses: "DataclassInstance", lines: Iterable[str], *, as_json: bool) -> None:
    """Print where it listens: `lines` for people, the addresses themselves for programs."""
    if as_json:
        print_json(asdict(addresses), indent=None)
        return
    console = stdout()
    for line in (*lines, "Ctrl-C stops it."):
        console.print(line, soft_wrap=True)
