"""`spanloom doctor`: is everything in order, and what to do where it is not."""

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from spanloom import ports
from spanloom.cli import options
from spanloom.cli.listeners import find_holder, is_taken
from spanloom.cli.processes import load_processes, port_in_force, read_dotenv
from spanloom.cli.safe_text import clean
from spanloom.cli.supervisor import probe
from spanloom.cli.terminal import print_json, stdout
from spanloom.cli.up import PROCESSES_FILE
from spanloom.errors import ConfigurationError, SpanloomError
from spanloom.server.text import duration

FOUND_WITHIN_S = 5.0
_OLDEST_PYTHON = (3, 11)
_PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "langgraph")
_OPTIONAL = {"langgraph"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer; `fix` says what to do and is "" where nothing is to be done."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def doctor(
    url: options.Url = options.DEFAULT_URL,
    otlp_endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Where the test span is sent, by OTLP over HTTP.",
        ),
    ] = f"http://127.0.0.1:{ports.OTLP_HTTP}",
    as_json: options.Json = False,
) -> None:
    """Check versions, ports and the backend, and that a span sent by OTLP can be found again.

    Ends with exit code 1 if a check fails.

    \b
    Examples:
      spanloom doctor
      spanloom doctor --url http://tracing.internal:16686
      spanloom doctor --json
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    console = stdout()
    checks: list[Check] = []
    for check in _checks(url, otlp_endpoint):
        checks.append(check)
        if not as_json:
            mark = Text("ok  ", "green") if check.ok else Text("fail", "bold red")
            line = Text.assemble(mark, f"  {check.name}: {clean(check.detail)}")
            console.print(line, soft_wrap=True)
            if check.fix:
                console.print(Text(f"      {clean(check.fix)}", "yellow"), soft_wrap=True)
    passed = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": passed, "checks": [asdict(check) for check in checks]})
    raise typer.Exit(0 if passed else 1)


def _checks(url: str, otlp_endpoint: str) -> Iterator[Check]:
    yield _python()
    yield from map(_package, _PACKAGES)
    yield from _process_ports()
    backend = _backend(url)
    yield backend
    yield _round_trip(url, otlp_endpoint)


def _python() -> Check:
    ok = sys.version_info >= _OLDEST_PYTHON
    needed = ".".join(map(str, _OLDEST_PYTHON))
    return Check(
        "python",
        ok,
        f"{platform.python_version()} ({sys.executable})",
        "" if ok else f"install Python {needed} or newer",
    )


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        if name in _OPTIONAL:
            return Check(name, True, "not installed (optional)")
        return Check(name, False, "not installed", f"pip install {name}")


def _process_ports() -> Iterator[Check]:
    """The ports of the checkout's processes: free, or answered by the process they belong to."""
    if not PROCESSES_FILE.is_file():
        return
    try:
        file = load_processes(PROCESSES_FILE)
        dotenv = read_dotenv(Path(".env"))
        in_force = [(process, port_in_force(process, dotenv)) for process in file.processes]
    except ConfigurationError as error:
        yield Check(str(PROCESSES_FILE), False, str(error), "correct the file or the variable")
        return
    for process, port in in_force:
        name = f"port {port} ({process.name})"
        if not is_taken(port):
            yield Check(name, True, "free")
            continue
        healthy, answer = probe(f"http://127.0.0.1:{port}{process.health}")
        if healthy:
            yield Check(name, True, "its process is running and healthy")
            continue
        holder = find_holder(port)
        by = f"pid {holder.pid} ({holder.command})" if holder else "another process"
        fix = f"stop that process, or set {process.port_env} to another port"
        yield Check(name, False, f"held by {by}; GET {process.health} {answer}", fix)


def _backend(url: str) -> Check:
    name = f"backend {url}"
    import httpx2  # noqa: PLC0415  # `--help` stays fast

    from spanloom.sources.http import is_loopback, server_url  # noqa: PLC0415

    server = server_url(url)
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        response = httpx2.get(
            f"{url.rstrip('/')}/health",
            timeout=3.0,
            trust_env=not is_loopback(server.host),
        )
        document = response.json()
        status = document["status"]
        uptime = float(document["uptime_seconds"]) if status == "ok" else 0.0
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return Check(name, False, f"no answer ({error})", _start_advice())
    except (ValueError, KeyError, TypeError):
        holder = find_holder(port) if server.host in {"127.0.0.1", "localhost"} else None
        by = f" but pid {holder.pid} ({holder.command})" if holder else ""
        return Check(
            name,
            False,
            f"something answers that is not a Spanloom server{by}",
            "stop it, or start the backend with another --query-port and set SPANLOOM_URL",
        )
    if status != "ok":
        return Check(name, False, f"{status}: {document.get('error')}", "its log may say more")
    detail = f"version {document.get('version')}, up for {duration(round(uptime * 1e9))}"
    return Check(name, True, detail)


def _start_advice() -> str:
    return (
        "start it with `spanloom up` (all of a checkout) or `spanloom serve`, or name the one "
        "that runs elsewhere with --url or SPANLOOM_URL"
    )


def _round_trip(url: str, otlp_endpoint: str) -> Check:
    from spanloom.cli import roundtrip  # noqa: PLC0415  # loads the SDK and its exporter

    name = "test span"
    started = time.monotonic()
    try:
        trace_id = roundtrip.send_span(otlp_endpoint)
    except roundtrip.NotSentError as error:
        return Check(
            name,
            False,
            f"could not be sent to {otlp_endpoint}: {error}",
            "is the backend running, and is OTEL_EXPORTER_OTLP_ENDPOINT its OTLP/HTTP address?",
        )
    try:
        found = roundtrip.find_span(url, trace_id, FOUND_WITHIN_S)
    except SpanloomError as error:
        return Check(name, False, f"was sent to {otlp_endpoint}, but: {error}", _start_advice())
    if found:
        took = duration(round((time.monotonic() - started) * 1e9))
        return Check(name, True, f"sent by OTLP and found again within {took} (trace {trace_id})")
    return Check(
        name,
        False,
        f"was taken by {otlp_endpoint}, but {url} does not have it after {FOUND_WITHIN_S:g} s",
        "do both addresses belong to the same backend? Its /metrics counts what it rejects",
    )
