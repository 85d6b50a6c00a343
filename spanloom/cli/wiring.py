"""Which process listens where, and how the others learn it. No process is started here."""

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spanloom.cli.listeners import find_holder, free_ports, is_taken
from spanloom.cli.processes import (
    ProcessFile,
    ProcessSpec,
    expand,
    placeholders,
    port_in_force,
)
from spanloom.errors import ConfigurationError

HOST = "127.0.0.1"
_COMMAND_SHOWN = 100
# These would send one signal past the backend that was started for it.
_PER_SIGNAL = tuple(
    f"OTEL_EXPORTER_OTLP_{signal}_{what}"
    for signal in ("TRACES", "METRICS", "LOGS")
    for what in ("ENDPOINT", "PROTOCOL")
)


@dataclass(frozen=True, slots=True)
class BackendPorts:
    """Where the embedded backend listens."""

    otlp_grpc: int
    otlp_http: int
    query: int

    @property
    def otlp_url(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with http/protobuf."""
        return f"http://{HOST}:{self.otlp_http}"

    @property
    def query_url(self) -> str:
        """The page and the query API."""
        return f"http://{HOST}:{self.query}"


@dataclass(frozen=True, slots=True)
class Wiring:
    """All ports in force."""

    backend: BackendPorts
    file: ProcessFile
    ports: Mapping[str, int]
    """Process name to port."""

    def url(self, process: ProcessSpec) -> str:
        """Where a process answers, without its path."""
        return f"http://{HOST}:{self.ports[process.name]}"

    def command(self, process: ProcessSpec, data_dir: Path) -> list[str]:
        """Its command with every placeholder filled in."""
        values = placeholders(self.file, self.ports, data_dir)
        values["port"] = str(self.ports[process.name])
        return [expand(argument, values) for argument in process.command]

    def environment(self, dotenv: Mapping[str, str], data_dir: Path) -> dict[str, str]:
        """What every process gets: ours, everyone's ports, the backend's address."""
        env = backend_environment(self.backend)
        values = placeholders(self.file, self.ports, data_dir)
        for name, value in self.file.env.items():
            if not env.get(name) and name not in dotenv:
                env[name] = expand(value, values)
        for process in self.file.processes:
            env[process.port_env] = str(self.ports[process.name])
        return env


def backend_environment(backend: BackendPorts) -> dict[str, str]:
    """This process's environment, with OpenTelemetry pointed at the backend."""
    env = {name: value for name, value in os.environ.items() if name not in _PER_SIGNAL}
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = backend.otlp_url
    env["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    env["SPANLOOM_URL"] = backend.query_url
    # The SDK's 5 s are made for busy services; here somebody waits for the trace.
    env.setdefault("OTEL_BSP_SCHEDULE_DELAY", "500")
    # A log file is read while it is written.
    env.setdefault("PYTHONUNBUFFERED", "1")
    return env


def wire(
    file: ProcessFile, backend: BackendPorts, dotenv: Mapping[str, str], *, automatic: bool
) -> Wiring:
    """Decide every port; with `automatic` all are free ones, `backend`'s too.

    Raises ConfigurationError that lists every taken port, its holder and what to do.
    """
    if automatic:
        otlp_grpc, otlp_http, query, *rest = free_ports(3 + len(file.processes))
        names = [process.name for process in file.processes]
        return Wiring(
            BackendPorts(otlp_grpc, otlp_http, query), file, dict(zip(names, rest, strict=True))
        )
    ports = {process.name: port_in_force(process, dotenv) for process in file.processes}
    _require_free(
        [
            ("the backend (OTLP/gRPC)", backend.otlp_grpc, "set SPANLOOM_OTLP_GRPC_PORT"),
            ("the backend (OTLP/HTTP)", backend.otlp_http, "set SPANLOOM_OTLP_HTTP_PORT"),
            ("the backend (query and page)", backend.query, "set SPANLOOM_QUERY_PORT"),
            *(
                (process.name, ports[process.name], f"set {process.port_env}")
                for process in file.processes
            ),
        ]
    )
    return Wiring(backend, file, ports)


def _require_free(needs: list[tuple[str, int, str]]) -> None:
    problems = []
    seen: dict[int, str] = {}
    for who, port, remedy in needs:
        if port in seen:
            problems.append(f"port {port} is wanted by {seen[port]} and by {who}: {remedy}")
        elif is_taken(port, HOST):
            holder = find_holder(port)
            by = "another process"
            if holder is not None:
                command = holder.command
                if len(command) > _COMMAND_SHOWN:
                    command = command[:_COMMAND_SHOWN] + "…"
                by = f"pid {holder.pid} ({command})"
            problems.append(f"port {port}, which {who} needs, is held by {by}: {remedy}")
        seen[port] = who
    if problems:
        raise ConfigurationError(
            "nothing was started:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + f"\nor let free ports be chosen for everything: {_automatic_ports()}"
        )


def _automatic_ports() -> str:
    # Who typed `make run` may not have `spanloom` on the path. make sets MAKELEVEL.
    return (
        'make run ARGS="--ports auto"' if "MAKELEVEL" in os.environ else "spanloom up --ports auto"
    )


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """A request whose trace id is known before it is sent."""

    trace_id: str
    traceparent: str
    curl: str


def first_request(url: str, path: str, body: str) -> FirstRequest:
    """A `curl` command with a fresh sampled traceparent (W3C Trace Context, version 00)."""
    trace_id, span_id = _random_id(16), _random_id(8)
    traceparent = f"00-{trace_id}-{span_id}-01"
    try:
        compact = json.dumps(json.loads(body), ensure_ascii=False)
    except ValueError as error:
        raise ConfigurationError(f"the body in processes.toml is not JSON: {error}") from error
    curl = " ".join(
        [
            f"curl -s {shlex.quote(url + path)}",
            "-H 'content-type: application/json'",
            f"-H 'traceparent: {traceparent}'",
            f"-d {shlex.quote(compact)}",
        ]
    )
    return FirstRequest(trace_id, traceparent, curl)


def _random_id(size: int) -> str:
    while not int(text := secrets.token_hex(size), 16):  # all zeros is invalid, if ever
        pass
    return text
