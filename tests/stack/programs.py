"""The real programs of the production stack, as processes on free loopback ports.

Each runs with the configuration that is committed; only addresses, folders and how often things
happen are overridden, by the variables that the files offer. Each is a context manager that ends
what it started, by its process id; where a binary was never built the test is skipped, with one
reason.

    with prometheus(folder) as metrics, jaeger(folder, metrics) as traces:
        otlp = collector(folder, traces, metrics)
        otlp.start()  # otlp.http is what OTEL_EXPORTER_OTLP_ENDPOINT takes
        ...
        otlp.stop()

or `whole_stack(folder)` for all of them. A program may be stopped, killed or frozen and started
again: it keeps its ports and its data.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2
import pytest
import yaml

from scripts import stack_tools
from tests.free_ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 120
STOP_S = 60


def binary(name: str) -> Path:
    """A program that `make stack-tools` built; the test is skipped where it has not."""
    found = stack_tools.find(name)
    if found is None:
        pytest.skip(f"{name} NOT BUILT: `make stack-tools` builds it (needs Go)")
    return found


def address() -> str:
    """A free `host:port`."""
    return f"127.0.0.1:{free_port()}"


@dataclass
class Program:
    """One process, its log, and where it says that it is ready."""

    name: str
    command: Sequence[str]
    folder: Path
    """Its data and its log; survives a restart."""
    health: str
    """Address that answers 200 once the program does its work."""
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_file(self) -> Path:
        """Everything it wrote, over all restarts."""
        return self.folder / f"{self.name}.log"

    @property
    def log(self) -> str:
        """The text of the log."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self.process is not None
        assert self.running, f"{self.name} is not running:\n{self.tail()}"
        return self.process.pid

    @property
    def rss_bytes(self) -> int:
        """Memory it holds (Linux)."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if "VmRSS" in line)

    def tail(self, lines: int = 30) -> str:
        """The end of the log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process without waiting for it."""
        assert not self.running
        self.folder.mkdir(parents=True, exist_ok=True)
        # Nothing of the machine's own settings, a proxy least of all.
        keep = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "PYTHONPATH")
        environment = {name: os.environ[name] for name in keep if name in os.environ}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment | dict(self.env), stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Return once the program says that it is ready; AssertionError if it ends or never is."""
        end = time.monotonic() + START_S
        answer = "nothing"
        while time.monotonic() < end:
            assert self.running, f"{self.name} ended at its start:\n{self.tail()}"
            try:
                got = httpx2.get(self.health, timeout=10, trust_env=False)
            except httpx2.HTTPError as error:
                answer = repr(error)
            else:
                if got.status_code == 200:
                    return
                answer = f"{got.status_code} {got.text[:200]}"
            time.sleep(0.1)
        raise AssertionError(f"{self.name} was not ready: {answer}\n{self.tail()}")

    def stop(self) -> None:
        """End it as an operator would, with SIGTERM; SIGKILL only if it will not."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to save anything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers, as on a host that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Jaeger(Program):
    """Jaeger v2 on badger."""

    url: str = ""
    """Query API and UI."""
    otlp_grpc: str = ""
    """`host:port` that takes OTLP over gRPC."""
    otlp_http: str = ""
    """Address that takes OTLP over HTTP."""
    metrics_url: str = ""
    """Its own metrics."""


@dataclass
class Prometheus(Program):
    """Prometheus with exemplar storage and the OTLP receiver."""

    url: str = ""
    targets: Path = Path()
    """Folder of the files that say who is scraped."""

    def scrape(self, job: str, *addresses: str, file: str = "programs.yml") -> None:
        """Add targets; Prometheus sees the change of the file at once."""
        path = self.targets / file
        groups = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        groups.append({"targets": list(addresses), "labels": {"job": job}})
        draft = path.with_suffix(".draft")
        draft.write_text(yaml.safe_dump(groups), encoding="utf-8")
        draft.replace(path)


@dataclass
class Loki(Program):
    """Loki, one process, on the file system."""

    url: str = ""

    @property
    def otlp(self) -> str:
        """What an OTLP/HTTP exporter takes as its endpoint."""
        return f"{self.url}/otlp"


@dataclass
class Collector(Program):
    """A Collector with one of the committed configurations."""

    grpc: str = ""
    """`host:port` that takes OTLP over gRPC."""
    http: str = ""
    """Address that takes OTLP over HTTP: what OTEL_EXPORTER_OTLP_ENDPOINT is set to."""
    metrics_url: str = ""
    """Its own metrics."""
    queue: Path = Path()
    """Folder of its queues on disk."""


def jaeger(
    folder: Path,
    metrics: Prometheus | None = None,
    *,
    config: Path = ROOT / "jaeger/config.yaml",
    **env: str,
) -> Jaeger:
    """Jaeger, its Monitor tab fed from `metrics`; `env` overrides any variable of its file."""
    query, grpc, http, health = (address() for _ in range(4))
    metrics_port = free_port()
    addresses = {
        "JAEGER_QUERY_LISTEN": query,
        "JAEGER_QUERY_GRPC_LISTEN": address(),
        "JAEGER_OTLP_GRPC_LISTEN": grpc,
        "JAEGER_OTLP_HTTP_LISTEN": http,
        "JAEGER_HEALTH_LISTEN": health,
        "JAEGER_METRICS_PORT": str(metrics_port),
        "JAEGER_DATA_DIR": str(folder / "jaeger" / "badger"),
        "JAEGER_UI_CONFIG": str(ROOT / "jaeger/ui.json"),
        # Jaeger traces its own queries otherwise, and sends them to whoever is on 4317.
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    if metrics is not None:
        addresses["PROMETHEUS_URL"] = metrics.url
    return Jaeger(
        "jaeger",
        [str(binary("jaeger")), "--config", str(config)],
        folder / "jaeger",
        f"http://{health}/status",
        addresses | env,
        url=f"http://{query}",
        otlp_grpc=grpc,
        otlp_http=f"http://{http}",
        metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
    )


def prometheus(folder: Path, *flags: str, interval: str = "2s") -> Prometheus:
    """Prometheus that scrapes itself only, until `scrape` adds others, every `interval`."""
    listen = address()
    configuration = folder / "prometheus" / "config"
    shutil.copytree(ROOT / "prometheus", configuration)
    targets = configuration / "targets"
    for file in targets.iterdir():
        file.write_text("[]\n", encoding="utf-8")
    main = configuration / "prometheus.yml"
    text = main.read_text(encoding="utf-8")
    often = text.replace("_interval: 15s", f"_interval: {interval}").replace(
        "scrape_timeout: 10s", f"scrape_timeout: {interval}"
    )
    assert often.count(interval) >= 3, "prometheus.yml no longer says how often it scrapes"
    main.write_text(often, encoding="utf-8")
    command = [
        str(binary("prometheus")),
        f"--config.file={main}",
        f"--storage.tsdb.path={folder / 'prometheus' / 'data'}",
        f"--web.listen-address={listen}",
        *prometheus_flags(),
        *flags,
    ]
    server = Prometheus(
        "prometheus",
        command,
        folder / "prometheus",
        f"http://{listen}/-/ready",
        url=f"http://{listen}",
        targets=targets,
    )
    server.scrape("prometheus", listen)
    return server


def prometheus_flags() -> list[str]:
    """The flags that the head of prometheus/prometheus.yml tells operators to use."""
    text = (ROOT / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    words = text.partition("\nglobal:")[0].replace("\\\n", " ").replace("#", " ").split()
    given = ("--config.file", "--storage.tsdb.path", "--web.listen-address")
    return [word for word in words if word.startswith("--") and not word.startswith(given)]


def loki(folder: Path, **env: str) -> Loki:
    """Loki; it takes some ten seconds to be ready."""
    port = free_port()
    environment = {
        "LOKI_HTTP_PORT": str(port),
        "LOKI_GRPC_PORT": str(free_port()),
        "LOKI_DATA_DIR": str(folder / "loki" / "data"),
    }
    file = f"-config.file={ROOT / 'loki/loki.yaml'}"
    return Loki(
        "loki",
        [str(binary("loki")), file, "-config.expand-env=true"],
        folder / "loki",
        f"http://127.0.0.1:{port}/ready",
        environment | env,
        url=f"http://127.0.0.1:{port}",
    )


def collector(
    folder: Path,
    traces: Jaeger | None = None,
    metrics: Prometheus | None = None,
    logs: Loki | None = None,
    *,
    config: Path = ROOT / "otel-collector.yaml",
    name: str = "collector",
    **env: str,
) -> Collector:
    """A Collector that sends to the given programs; to an address nobody listens on otherwise.

    `name` tells several in one folder apart; `env` overrides any variable of the file. Without
    REAP_OTLP_ENDPOINT among them in-flight events go nowhere.
    """
    grpc, http, health = (address() for _ in range(3))
    metrics_port = free_port()
    queue = folder / name / "queue"
    environment = {
        "OTLP_GRPC_ENDPOINT": grpc,
        "OTLP_HTTP_ENDPOINT": http,
        "COLLECTOR_HEALTH_ENDPOINT": health,
        "COLLECTOR_METRICS_PORT": str(metrics_port),
        "COLLECTOR_QUEUE_DIR": str(queue),
        # The default waits for as long as a dashboard's step; a test waits for the result.
        "COLLECTOR_RED_INTERVAL": "1s",
        "COLLECTOR_REAP": "on" if "REAP_OTLP_ENDPOINT" in env else "off",
        "JAEGER_OTLP_ENDPOINT": traces.otlp_grpc if traces else address(),
        "PROMETHEUS_OTLP_ENDPOINT": f"{metrics.url if metrics else 'http://' + address()}"
        "/api/v1/otlp",
        "LOKI_OTLP_ENDPOINT": logs.otlp if logs else f"http://{address()}/otlp",
    }
    return Collector(
        name,
        [str(binary("otelcol")), "--config", str(config)],
        folder / name,
        f"http://{health}",
        environment | env,
        grpc=grpc,
        http=f"http://{http}",
        metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
        queue=queue,
    )


@dataclass(frozen=True)
class Stack:
    """All programs, running."""

    collector: Collector
    jaeger: Jaeger
    prometheus: Prometheus
    loki: Loki


@contextlib.contextmanager
def together(*programs: Program) -> Iterator[None]:
    """Start several at once, and stop them so that none waits for another."""
    try:
        for program in programs:
            program.launch()
        for program in programs:
            program.wait_ready()
        yield
    finally:
        for program in programs:
            if program.running:
                program.process.terminate()  # type: ignore[union-attr]  # it runs
        for program in programs:
            program.stop()


@contextlib.contextmanager
def whole_stack(folder: Path, **env: str) -> Iterator[Stack]:
    """Collector, Jaeger, Prometheus and Loki; Prometheus scrapes them. `env` is the Collector's."""
    metrics, logs = prometheus(folder), loki(folder)
    traces = jaeger(folder, metrics)
    otlp = collector(folder, traces, metrics, logs, **env)  # type: ignore[arg-type]
    for program, url in (
        ("otel-collector", otlp.metrics_url),
        ("jaeger", traces.metrics_url),
        ("loki", logs.url),
    ):
        metrics.scrape(program, httpx2.URL(url).netloc.decode())
    with together(metrics, logs, traces, otlp):
        yield Stack(otlp, traces, metrics, logs)
