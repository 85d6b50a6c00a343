"""The API as a process of its own."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 90


class Process:
    """A running `python -m service.app` and the lines it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())
        self._news = asyncio.Condition()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(json.loads(line))
                self._news.notify_all()

    async def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if line["event"] == event]

        async with asyncio.timeout(SECONDS_TO_START), self._news:
            await self._news.wait_for(lambda: len(found()) >= count)
        return found()[-1]

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await self.process.wait()
        await self._reading
        return code


@contextlib.asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AGENT_", "OTEL_", "PROMETHEUS_", "OPENAI", "ANTHROPIC"))
    }
    exporters = {f"OTEL_{name}_EXPORTER": "none" for name in ("TRACES", "METRICS", "LOGS")}
    process = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.app", "--port", "0", *arguments),
            env={**clean, **exporters, **environment},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
    )
    try:
        yield process
    finally:
        await process.stop()
