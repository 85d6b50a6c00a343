"""The service on Modal: the API as its ASGI application, retrieval beside it in each container.

    pip install modal && modal setup                      once; then the secret, see README.md
    modal deploy deploy/modal/app.py

    https ─▶ api ─ 127.0.0.1:8001 ▶ retrieval             one container
              └─ OTLP over TLS with a token ─▶ your Collector

It is `service.app.create_app`, as everywhere; only who runs it is Modal, instead of uvicorn.
Nothing of the service is imported here: this file is read on the machine that deploys as well,
which needs no more than `modal`.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import modal

if TYPE_CHECKING:
    from fastapi import FastAPI

# Where a container holds this file there is no checkout around it.
ROOT: Final = Path(__file__).resolve().parents[2] if modal.is_local() else Path("/root")
RETRIEVAL_START_S: Final = 60
STOP_S: Final = 10
LEFT_OUT: Final = ["**/__pycache__", "**/*.pyc", "**/.env*"]


def _revision() -> str:
    """The commit that is deployed, for /health; empty where that cannot be told."""
    if not modal.is_local():
        return os.environ.get("AGENT_REVISION", "")
    with suppress(OSError, subprocess.CalledProcessError):
        asked = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603  # fixed words
    return ""


image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(
        requirements=[str(ROOT / "requirements.lock")], extra_options="--require-hashes"
    )
    .env(
        {
            "AGENT_DATA_DIR": "/tmp/agent",  # noqa: S108  # a container's own; sessions are in PostgreSQL
            "AGENT_REVISION": _revision(),
            # faas.name lets agent_* metrics through to Prometheus, which cannot scrape a container
            "OTEL_RESOURCE_ATTRIBUTES": "faas.name=spanloom,deployment.environment.name=production",
            # what a container counted since is lost if it is preempted
            "OTEL_METRIC_EXPORT_INTERVAL": "15000",
            # callers come from anywhere, whatever address Modal says they have
            "SPANLOOM_TRUST": "none",
        }
    )
    # Last, because it changes most. With what is not Python: prices, vocabularies, the corpus.
    .add_local_dir(ROOT / "spanloom", "/root/spanloom", ignore=LEFT_OUT)
    .add_local_dir(ROOT / "service", "/root/service", ignore=LEFT_OUT)
)

app = modal.App("spanloom", image=image)


@app.cls(
    secrets=[
        # `modal deploy` and a container refuse to start without these two
        modal.Secret.from_name(
            "spanloom", required_keys=["DATABASE_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"]
        )
    ],
    cpu=1.0,  # physical: two vCPUs
    memory=1536,  # MiB
    # One is always warm: the first question would wait for the imports otherwise.
    min_containers=1,
    max_containers=10,  # with 5 connections to PostgreSQL each
    scaledown_window=300,
    startup_timeout=120,
    # Longer than AGENT_DEADLINE_S, so that it is the service that says what was late.
    timeout=150,
    # A snapshot would copy threads, process ids and the instance id of the telemetry.
    enable_memory_snapshot=False,
)
# A question takes 74 ms of CPU and waits for tokens for seconds.
@modal.concurrent(max_inputs=40, target_inputs=30)
class Service:
    """One container: the API, and retrieval as a process of its own."""

    @modal.enter()
    def start_retrieval(self) -> None:
        """Start it and wait until it answers; RuntimeError if it does not."""
        port = os.environ.get("AGENT_RETRIEVAL_PORT") or "8001"
        self._retrieval = subprocess.Popen(
            [sys.executable, "-m", "service.retrieval", "serve"],
            # its only caller is the API beside it, whose traces it continues
            env=os.environ | {"SPANLOOM_TRUST": "loopback"},
        )
        ask = build_opener(ProxyHandler({})).open
        deadline = time.monotonic() + RETRIEVAL_START_S
        while time.monotonic() < deadline and self._retrieval.poll() is None:
            with suppress(URLError, OSError, HTTPException):
                ask(f"http://127.0.0.1:{port}/health", None, 5).close()
                return
            time.sleep(0.1)
        self._end_retrieval()
        raise RuntimeError("retrieval did not start; its own lines above say why")

    @modal.asgi_app()
    def api(self) -> "FastAPI":
        """The API, which sets its telemetry up and flushes it with its lifespan."""
        from service.app import create_app  # noqa: PLC0415  # only in the container

        return create_app()

    @modal.exit()
    def stop_retrieval(self) -> None:
        """Let it finish and flush."""
        self._end_retrieval()

    def _end_retrieval(self) -> None:
        """SIGTERM, and SIGKILL if that does not do."""
        self._retrieval.terminate()
        try:
            self._retrieval.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._retrieval.kill()
            self._retrieval.wait()
