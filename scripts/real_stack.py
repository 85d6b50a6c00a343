"""The production stack and the service as processes of this host: `make stack`.

    python -m scripts.real_stack            Collector, Jaeger, Prometheus, Loki, spanloom reap,
                                            then the service
    python -m scripts.real_stack --no-service

Every program runs with its committed configuration on its default port; data lies in var/, logs in
var/log. The programs are those that `make stack-tools` built. Ctrl-C stops all.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from scripts import stack_tools
from spanloom import ports
from spanloom.cli.listeners import find_holder, is_taken
from spanloom.cli.processes import (
    expand,
    load_processes,
    placeholders,
    port_in_force,
    read_dotenv,
)
from spanloom.cli.progress import Progress
from spanloom.cli.supervisor import (
    POLL_S,
    ChildDiedError,
    NotHealthyError,
    StopRequest,
    StopRequestedError,
    Supervisor,
)
from spanloom.cli.terminal import print_error
from spanloom.cli.wiring import HOST, first_request
from spanloom.errors import ConfigurationError
from spanloom.server.reap import REAP_AFTER_S

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("var")
TIMEOUT_S = 120
COLLECTOR_HEALTH = 13133


@dataclass(frozen=True)
class Part:
    """One process: what it runs, where it listens, and where it says that it is ready."""

    name: str
    command: list[str]
    url: str
    health: str
    listens: tuple[int, ...]
    env: dict[str, str] = field(default_factory=dict)


def at(port: int) -> str:
    """Address of a port of this host."""
    return f"http://{HOST}:{port}"


def program(name: str) -> str:
    """Path of a program; ConfigurationError where it was never built."""
    found = stack_tools.find(name)
    if found is None:
        raise ConfigurationError(f"{name} is not built: `make stack-tools` builds it (needs Go)")
    return str(found)


def prometheus_command() -> list[str]:
    """The command in the head of prometheus/prometheus.yml."""
    text = (ROOT / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    head = text.partition("\nglobal:")[0].replace("\\\n", " ").replace("#", " ").split()
    return [program("prometheus"), *(word for word in head if word.startswith("--"))]


def programs() -> list[Part]:
    """The four programs, and the reaper behind the Collector."""
    return [
        Part(
            "prometheus",
            prometheus_command(),
            at(ports.PROMETHEUS),
            at(ports.PROMETHEUS) + "/-/ready",
            (ports.PROMETHEUS,),
        ),
        Part(
            "loki",
            [program("loki"), "-config.file=loki/loki.yaml", "-config.expand-env=true"],
            at(ports.LOKI),
            at(ports.LOKI) + "/ready",
            (ports.LOKI, ports.LOKI_GRPC),
        ),
        Part(
            "jaeger",
            [program("jaeger"), "--config", "jaeger/config.yaml"],
            at(ports.QUERY_HTTP),
            at(ports.JAEGER_HEALTH) + "/status",
            (ports.QUERY_HTTP, ports.JAEGER_OTLP_GRPC, ports.JAEGER_HEALTH, ports.JAEGER_METRICS),
            # It traces its own queries otherwise, into the Collector.
            {"OTEL_TRACES_SAMPLER": "always_off"},
        ),
        Part(
            "collector",
            [program("otelcol"), "--config", "otel-collector.yaml"],
            at(ports.OTLP_HTTP),
            at(COLLECTOR_HEALTH),
            (ports.OTLP_HTTP, ports.OTLP_GRPC, COLLECTOR_HEALTH, ports.COLLECTOR_METRICS),
        ),
        reaper(),
    ]


def reaper() -> Part:
    """`spanloom reap` on its default ports."""
    return Part(
        "reap",
        [sys.executable, "-m", "spanloom", "reap", f"--data-dir={DATA / 'reap'}"],
        at(ports.REAP_OTLP_HTTP),
        at(ports.REAP_HTTP) + "/health",
        (ports.REAP_OTLP_HTTP, ports.REAP_HTTP),
    )


def service() -> tuple[list[Part], str]:
    """The processes of service/processes.toml, and a request to try."""
    file = load_processes(ROOT / "service/processes.toml")
    dotenv = read_dotenv(Path(".env"))
    listens = {process.name: port_in_force(process, dotenv) for process in file.processes}
    values = placeholders(file, listens, DATA.absolute())
    shared = {name: expand(text, values) for name, text in file.env.items() if name not in dotenv}
    shared |= {process.port_env: str(listens[process.name]) for process in file.processes}
    # The one setting that leaves the embedded backend; the other says that there is a reaper.
    shared["OTEL_EXPORTER_OTLP_ENDPOINT"] = at(ports.OTLP_HTTP)
    shared["SPANLOOM_REAPED_AFTER"] = f"{REAP_AFTER_S:g}"
    parts = [
        Part(
            process.name,
            [
                expand(argument, values | {"port": str(listens[process.name])})
                for argument in process.command
            ],
            at(listens[process.name]),
            at(listens[process.name]) + process.health,
            (listens[process.name],),
            shared,
        )
        for process in file.processes
    ]
    curl = ""
    for process in file.processes:
        if process.request is not None:
            url = at(listens[process.name])
            request = first_request(url, process.request.path, process.request.body)
            curl = (
                f"Try it:\n\n  {request.curl}\n\n"
                f"then open {at(ports.QUERY_HTTP)}/trace/{request.trace_id}\n"
                f"or {at(ports.QUERY_HTTP)}/api/traces/{request.trace_id} (a Jaeger that "
                "`make stack-tools` built has the API and no page)"
            )
    return parts, curl


def require_free(parts: list[Part]) -> None:
    """ConfigurationError with a line for each port that somebody else holds."""
    if problems := list(_taken(parts)):
        raise ConfigurationError("nothing was started:\n" + "\n".join(problems))


def _taken(parts: list[Part]) -> Iterator[str]:
    for part in parts:
        for port in part.listens:
            if is_taken(port, HOST):
                holder = find_holder(port)
                by = f"pid {holder.pid} ({holder.command[:100]})" if holder else "another process"
                yield f"  port {port}, which {part.name} needs, is held by {by}"


def run(supervisor: Supervisor, progress: Progress, groups: list[list[Part]], said: str) -> int:
    """Start the groups one after the other, each at once, and watch them; the exit code."""
    try:
        for group in groups:
            children = [
                supervisor.start(part.name, part.command, {**os.environ, **part.env})
                for part in group
            ]
            for part, child in zip(group, children, strict=True):
                with progress.starting(part.name, part.url) as tick:
                    seconds = supervisor.wait_healthy(child, part.health, TIMEOUT_S, tick)
                progress.healthy(part.name, part.url, seconds)
        progress.say(f"\n{said}\nData in {DATA}/, logs in {DATA / 'log'}/. Ctrl-C stops all.")
        while True:
            supervisor.check()
            time.sleep(POLL_S)
    except StopRequestedError:
        progress.say("stopping")
        code = 0
    except (ChildDiedError, NotHealthyError) as error:
        print_error(str(error))
        code = 1
    supervisor.stop_all(progress.stopped)
    return code


def main() -> int:
    """Start, watch, stop; 0 after Ctrl-C, 1 if a process failed, 2 if nothing was started."""
    parser = argparse.ArgumentParser(description="The production stack as processes of this host.")
    parser.add_argument("--no-service", action="store_true", help="no service, for one of yours")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # the configuration's paths are relative to it
    try:
        groups = [programs()]
        said = f"OTEL_EXPORTER_OTLP_ENDPOINT={at(ports.OTLP_HTTP)} sends here."
        if not arguments.no_service:
            # Each needs the one before.
            parts, said = service()
            groups += [[part] for part in parts]
        require_free([part for group in groups for part in group])
    except ConfigurationError as error:
        print_error(str(error))
        return 2
    stop = StopRequest()
    stop.install()
    names = [part.name for group in groups for part in group]
    with Supervisor(DATA / "log", stop) as supervisor:
        return run(supervisor, Progress(Console(), names), groups, said)


if __name__ == "__main__":
    sys.exit(main())
