"""A service with four worker processes on one port: `metrics_service.py PORT_FILE`."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from uvicorn.supervisors import Multiprocess

from spanloom.telemetry import current_trace_flags, current_trace_id, setup
from spanloom.telemetry.metrics import active_requests, record_request, render

WORKERS = 4
HEALTHCHECK_S = 60
"""Who is slow for uvicorn's five seconds would be killed and replaced."""


def create_app() -> FastAPI:
    telemetry = setup("workers")
    app = FastAPI()

    @app.get("/work")
    async def work(seconds: float, endpoint: str = "/work") -> dict[str, Any]:
        with active_requests():
            record_request(endpoint.replace("PID", str(os.getpid())), "200", seconds)
        return {
            "pid": os.getpid(),
            "trace_id": current_trace_id(),
            "sampled": int(current_trace_flags(), 16) & 1,
        }

    @app.get("/hold")
    async def hold(folder: Path, number: int) -> dict[str, int]:
        with active_requests():
            (folder / f"{os.getpid()}.{number}").touch()
            while not (folder / "release").exists():  # noqa: ASYNC110 - by another process
                await asyncio.sleep(0.02)
        return {"pid": os.getpid()}

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        body, content_type = render(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    telemetry.instrument_fastapi(app)
    return app


def main() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    port_file = Path(sys.argv[1])
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(listening.getsockname()[1]))
    partial.rename(port_file)
    config = uvicorn.Config(
        "tests.telemetry.metrics_service:create_app",
        factory=True,
        workers=WORKERS,
        timeout_worker_healthcheck=HEALTHCHECK_S,
    )
    Multiprocess(config, sockets=[listening]).run()


if __name__ == "__main__":
    main()
