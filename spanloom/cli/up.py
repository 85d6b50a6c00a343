"""`spanloom up`: the backend and every process of the checkout, or the user's own command."""

import enum
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from spanloom import ports
from spanloom.cli import options
from spanloom.cli.processes import BACKEND, ProcessFile, load_processes, read_dotenv
from spanloom.cli.progress import Progress
from spanloom.cli.supervisor import (
    POLL_S,
    Child,
    ChildDiedError,
    NotHealthyError,
    StopRequest,
    StopRequestedError,
    Supervisor,
)
from spanloom.cli.terminal import print_error, print_json, stderr, stdout
from spanloom.cli.wiring import (
    HOST,
    BackendPorts,
    FirstRequest,
    Wiring,
    backend_environment,
    first_request,
    wire,
)
from spanloom.errors import ConfigurationError

PROCESSES_FILE = Path("service/processes.toml")
_IMPATIENT = 3  # Ctrl-C this often and the command is stopped, whether it likes it or not


class Ports(enum.StrEnum):
    """How ports are chosen."""

    FIXED = "fixed"
    AUTO = "auto"


def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="CMD", help="Run this instead of the checkout's processes."),
    ] = None,
    *,
    processes: Annotated[
        Path | None,
        typer.Option(
            "--processes", metavar="FILE", help=f"The processes to start ({PROCESSES_FILE})."
        ),
    ] = None,
    data_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            envvar="SPANLOOM_DATA_DIR",
            help="Folder for traces, logs and the service's files.",
        ),
    ] = Path("var"),
    otlp_grpc_port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=1, max=65535, envvar="SPANLOOM_OTLP_GRPC_PORT", help="OTLP/gRPC."
        ),
    ] = ports.OTLP_GRPC,
    otlp_http_port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=1, max=65535, envvar="SPANLOOM_OTLP_HTTP_PORT", help="OTLP/HTTP."
        ),
    ] = ports.OTLP_HTTP,
    query_port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=1, max=65535, envvar="SPANLOOM_QUERY_PORT", help="Query and page."
        ),
    ] = ports.QUERY_HTTP,
    port_choice: Annotated[
        Ports, typer.Option("--ports", help="auto: free ports for everything.")
    ] = Ports.FIXED,
    timeout: Annotated[
        int,
        typer.Option(
            parser=options.duration_ns, metavar="TIME", help="Longest wait for one process."
        ),
    ] = "120s",  # type: ignore[assignment]  # the parser turns it into nanoseconds
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the processes write.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once everything is ready.")
    ] = False,
) -> None:
    """Start the trace backend and the processes of this checkout, or your own command.

    Without a command it reads service/processes.toml, starts the backend and then each process
    once the one before is healthy, and prints a request to try and the link to its trace. Ctrl-C
    stops everything.

    With a command it starts the backend and runs the command with OTEL_EXPORTER_OTLP_ENDPOINT and
    OTEL_EXPORTER_OTLP_PROTOCOL set; it ends when the command ends, with its exit code.
    opentelemetry-instrument sets an SDK up only where opentelemetry-distro is installed.

    \b
    Examples:
      spanloom up
      spanloom up --ports auto --verbose
      AGENT_API_PORT=8010 spanloom up
      spanloom up -- python my_app.py
      spanloom up -- opentelemetry-instrument uvicorn my_app:app
    """  # noqa: D301  # \b is click's mark for "do not rewrap"
    data_dir = data_dir.absolute()
    backend = BackendPorts(otlp_grpc_port, otlp_http_port, query_port)
    file = ProcessFile(()) if command else load_processes(_processes_file(processes))
    dotenv = read_dotenv(Path(".env"))
    wiring = wire(file, backend, dotenv, automatic=port_choice is Ports.AUTO)
    console = stderr() if as_json or command else stdout()
    names = [BACKEND, *(process.name for process in file.processes)]
    session = _Session(
        wiring=wiring,
        data_dir=data_dir,
        timeout_s=timeout / 1e9,
        progress=Progress(console, names),
        as_json=as_json,
    )
    stop = StopRequest()
    stop.install()
    with Supervisor(data_dir / "log", stop) as supervisor:
        if verbose:
            supervisor.on_output = session.progress.output
        if command:
            code = session.run_command(supervisor, stop, command)
        else:
            code = session.run_checkout(supervisor, wiring.environment(dotenv, data_dir))
    raise typer.Exit(code)


def _processes_file(given: Path | None) -> Path:
    path = given or PROCESSES_FILE
    if not path.is_file():
        if given is not None:
            raise ConfigurationError(f"{given} is not a file: --processes takes a processes.toml")
        raise ConfigurationError(
            f"there is no {PROCESSES_FILE} here: run `spanloom up` at the top of a checkout, name "
            "a file with --processes, or run your own command with `spanloom up -- CMD`"
        )
    return path


class _Session:
    """One run of `up` after everything was checked."""

    def __init__(
        self,
        *,
        wiring: Wiring,
        data_dir: Path,
        timeout_s: float,
        progress: Progress,
        as_json: bool,
    ) -> None:
        self._wiring = wiring
        self._data_dir = data_dir
        self._timeout_s = timeout_s
        self.progress = progress
        self._as_json = as_json

    def run_checkout(self, supervisor: Supervisor, env: dict[str, str]) -> int:
        """Start all processes, then watch them; the exit code."""
        try:
            self._warn_of_other_endpoint()
            self._start_backend(supervisor)
            for process in self._wiring.file.processes:
                url = self._wiring.url(process)
                command = self._wiring.command(process, self._data_dir)
                child = supervisor.start(process.name, command, env)
                self._wait(supervisor, child, url, url + process.health)
            self._announce(supervisor.children)
            while True:
                supervisor.check()
                time.sleep(POLL_S)
        except StopRequestedError:
            self.progress.say("stopping")
            code = 0
        except (ChildDiedError, NotHealthyError) as error:
            print_error(str(error))
            code = 1
        supervisor.stop_all(self.progress.stopped)
        return code

    def run_command(self, supervisor: Supervisor, stop: StopRequest, command: Sequence[str]) -> int:
        """Start the backend, run the command to its end; the command's exit code."""
        try:
            backend = self._start_backend(supervisor)
        except StopRequestedError:
            return 128 + stop.last_signal
        except (ChildDiedError, NotHealthyError) as error:
            print_error(str(error))
            return 1
        child = supervisor.start_attached(command, backend_environment(self._wiring.backend))
        self._announce(supervisor.children)
        passed_on = 0
        while child.alive():
            supervisor.follow()
            if stop.count > passed_on:
                passed_on = stop.count
                if stop.last_signal != signal.SIGINT or passed_on >= _IMPATIENT:
                    break
                if child.own_group:  # else the terminal has already sent it
                    child.send(signal.SIGINT)
            if backend is not None and not backend.alive():
                # The command matters more than its traces.
                print_error(f"{ChildDiedError(backend)}\nYour command goes on without a backend.")
                backend = None
            time.sleep(POLL_S)
        supervisor.stop_all()
        store = self._data_dir / "traces"
        self.progress.say(
            f"The traces are kept: spanloom serve --data-dir {shlex.quote(str(store))} shows them "
            f"again, spanloom traces --db {shlex.quote(str(store))} lists them."
        )
        code: int = child.popen.returncode
        return code if code >= 0 else 128 - code

    def _start_backend(self, supervisor: Supervisor) -> Child | None:
        backend = self._wiring.backend
        command = [
            *(sys.executable, "-m", "spanloom", "serve"),
            *("--host", HOST),
            *("--data-dir", str(self._data_dir / "traces")),
            *("--otlp-grpc-port", str(backend.otlp_grpc)),
            *("--otlp-http-port", str(backend.otlp_http)),
            *("--query-port", str(backend.query)),
        ]
        child = supervisor.start(BACKEND, command, os.environ)
        self._wait(supervisor, child, backend.query_url, backend.query_url + "/health")
        return child

    def _wait(self, supervisor: Supervisor, child: Child, url: str, health_url: str) -> None:
        with self.progress.starting(child.name, url) as tick:
            seconds = supervisor.wait_healthy(child, health_url, self._timeout_s, tick)
        self.progress.healthy(child.name, url, seconds)

    def _warn_of_other_endpoint(self) -> None:
        other = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if other and other.rstrip("/") != self._wiring.backend.otlp_url:
            self.progress.say(
                f"note: OTEL_EXPORTER_OTLP_ENDPOINT={other} is not used here, telemetry goes to "
                "the backend of this run"
            )

    def _first_request(self) -> FirstRequest | None:
        for process in self._wiring.file.processes:
            if process.request is not None:
                url = self._wiring.url(process)
                return first_request(url, process.request.path, process.request.body)
        return None

    def _announce(self, children: list[Child]) -> None:
        request = self._first_request()
        backend = self._wiring.backend
        trace_url = f"{backend.query_url}/trace/{request.trace_id}" if request else None
        if self._as_json:
            document: dict[str, object] = {
                "otlp_grpc": f"{HOST}:{backend.otlp_grpc}",
                "otlp_http": backend.otlp_url,
                "query": backend.query_url,
                "processes": {
                    process.name: self._wiring.url(process)
                    for process in self._wiring.file.processes
                },
                "pids": {child.name: child.popen.pid for child in children},
                "logs": {child.name: str(child.log) for child in children if child.log},
            }
            if request is not None:
                document |= {
                    "trace_id": request.trace_id,
                    "traceparent": request.traceparent,
                    "trace_url": trace_url,
                    "curl": request.curl,
                }
            print_json(document, indent=None)
            return
        say = self.progress.say
        if not self._wiring.file.processes:
            say(f"traces at {backend.query_url}")
            return
        rows = [
            (process.name, self._wiring.url(process), process.description)
            for process in self._wiring.file.processes
        ]
        rows += [
            ("traces", backend.query_url, "page and query API"),
            ("OTLP", backend.otlp_url, f"and gRPC on {HOST}:{backend.otlp_grpc}"),
            ("logs", str(self._data_dir / "log"), "one file a process"),
        ]
        names, places = (max(len(row[column]) for row in rows) for column in (0, 1))
        say()
        for name, place, about in rows:
            say(f"  {name.ljust(names)}  {place.ljust(places)}  {about}".rstrip())
        if request is not None:
            say()
            say("Ask something:")
            say()
            say(f"  {request.curl}")
            say()
            say("and look at its trace:")
            say()
            say(f"  {trace_url}")
        say()
        say("Ctrl-C stops everything.")
