"""The retrieval process, really started: a process of its own on a free port."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.telemetry.live import child_environment, wait_for

MODULE = [sys.executable, "-m", "service.retrieval"]


def environment(folder: Path, **extra: str) -> dict[str, str]:
    inherited = {k: v for k, v in child_environment().items() if not k.startswith("AGENT_")}
    return {**inherited, "AGENT_DATA_DIR": str(folder), "OTEL_BSP_SCHEDULE_DELAY": "100", **extra}


def index(folder: Path, *arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    """`python -m service.retrieval index …`, run to its end."""
    return subprocess.run(
        [*MODULE, "index", *arguments],
        cwd=folder,
        env=environment(folder, **extra),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


class RetrievalProcess:
    """`python -m service.retrieval serve --port 0`, ready when constructed."""

    def __init__(self, folder: Path, **extra: str) -> None:
        self._stdout = folder / f"stdout-{os.urandom(4).hex()}"
        with self._stdout.open("wb") as stdout:
            self.process = subprocess.Popen(
                [*MODULE, "serve", "--port", "0"],
                cwd=folder,
                env=environment(folder, **extra),
                stdout=stdout,
                stderr=subprocess.STDOUT,
            )
        try:
            listening = wait_for(lambda: self._line("retrieval_listening"), timeout_s=60)
            self.url = f"http://127.0.0.1:{listening['port']}"
            self.http = httpx2.Client(base_url=self.url, trust_env=False, timeout=30)
            wait_for(self._is_healthy, timeout_s=60)
        except BaseException:
            self.process.kill()
            raise

    def lines(self) -> list[dict[str, Any]]:
        complete, _, _ = self._stdout.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in complete.split(b"\n") if line.startswith(b"{")]

    def search(self, query: str, top_k: int = 6, **headers: str) -> list[dict[str, Any]]:
        answer = self.http.post(
            "/search", json={"query": query, "top_k": top_k}, headers=headers
        ).raise_for_status()
        hits: list[dict[str, Any]] = answer.json()["hits"]
        return hits

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        if hasattr(self, "http"):
            self.http.close()
        self.process.terminate()
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _line(self, event: str) -> dict[str, Any] | None:
        if self.process.poll() is not None:
            raise AssertionError(f"it ended: {self._stdout.read_text('utf-8')[-2000:]}")
        return next((line for line in self.lines() if line["event"] == event), None)

    def _is_healthy(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx2.TransportError:
            return False
