"""The agent service, its processes started against any OTLP endpoint and no backend of ours."""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from spanloom.cli.processes import expand, load_processes, placeholders
from tests.free_ports import free_port
from tests.stack.programs import ROOT, Program


@dataclass(frozen=True)
class Service:
    """The running processes by their names in service/processes.toml."""

    processes: dict[str, Program]
    urls: dict[str, str]

    @property
    def api(self) -> str:
        """Address of the API."""
        return self.urls["api"]

    def ask(
        self, query: str, trace_id: str | None = None, **body: str
    ) -> tuple[str, httpx2.Response]:
        """POST /chat as a traced caller would; the trace id and the answer."""
        trace_id = trace_id or secrets.token_hex(16)
        header = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        return trace_id, httpx2.post(
            f"{self.api}/chat",
            json={"query": query, **body},
            headers=header,
            timeout=60,
            trust_env=False,
        )


@contextlib.contextmanager
def agent_service(
    folder: Path, endpoint: str, *, given: Mapping[str, int] | None = None, **env: str
) -> Iterator[Service]:
    """Every process of service/processes.toml, sending OTLP over HTTP to `endpoint`.

    `endpoint` is all that is set to leave the embedded backend; metrics go every second, so that
    nobody waits for them. `given` fixes ports by the process's name; others are free ones.
    """
    file = load_processes(ROOT / "service/processes.toml")
    ports = {process.name: free_port() for process in file.processes} | dict(given or {})
    values = placeholders(file, ports, folder / "data")
    shared = {name: expand(text, values) for name, text in file.env.items()}
    shared |= {process.port_env: str(ports[process.name]) for process in file.processes}
    shared |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    with contextlib.ExitStack() as stack:
        processes = {
            process.name: stack.enter_context(
                Program(
                    process.name,
                    [
                        expand(part, values | {"port": str(ports[process.name])})
                        for part in process.command
                    ],
                    folder,
                    urls[process.name] + process.health,
                    shared | env,
                )
            )
            for process in file.processes
        }
        yield Service(processes, urls)
