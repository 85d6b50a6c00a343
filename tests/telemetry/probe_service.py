"""A small FastAPI service, set up as users do it: `probe_service.py PORT_FILE`."""

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from opentelemetry import trace

from spanloom.telemetry import (
    current_trace_flags,
    current_trace_id,
    deadline,
    get_logger,
    is_trusted,
    llm_call,
    setup,
    step,
    tool,
)
from spanloom.telemetry.endings import apply_ending, classify

telemetry = setup("probe", service_version="1.2.3")
app = FastAPI()
log = get_logger("probe.app")


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/items/{item}")
async def items(item: str, request: Request) -> dict[str, Any]:
    log.info("chat_request", query_len=len(item), note="检索增强生成")
    logging.getLogger("langchain.probe").warning("from stdlib: %s", "线程")
    with tool("calculator"), llm_call("small", provider="openai") as call:
        call.usage(input_tokens=7, output_tokens=3)
    return {
        "trace_id": current_trace_id(),
        "flags": current_trace_flags(),
        "trusted": is_trusted(request.scope),
    }


@app.post("/unread")
async def unread() -> dict[str, str]:
    await asyncio.sleep(0.2)  # until the server has stopped reading, its buffer being full
    return {"trace_id": current_trace_id()}


@app.get("/boom")
async def boom() -> None:
    raise ValueError("bad key sk-abcdefghijklmnop1234 进程")


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        for number in range(3):
            with step("chunk", number=number):
                log.info("chunk", number=number)
                await asyncio.sleep(0)
            yield f"data: {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/deadline")
async def cut() -> dict[str, str]:
    try:
        async with deadline(0.05):
            with step("slow"):
                await asyncio.sleep(30)
    except TimeoutError:
        return {"trace_id": current_trace_id()}
    return {}


@app.get("/status/{code}")
async def status(code: int) -> Response:
    return Response(status_code=code)


@app.get("/endless")
async def endless() -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        while True:
            yield "data: more\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/late")
async def late() -> None:
    raise TimeoutError


@app.get("/told")
async def told() -> Response:
    apply_ending(trace.get_current_span(), classify(TimeoutError()), None)
    return Response(status_code=504)


@app.get("/tidy")
async def tidy() -> None:
    with step("tidying"):
        log.info("/tidy began")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.5)  # a connection that is closed, a transaction rolled back


@app.get("/stubborn")
async def stubborn() -> None:
    log.info("/stubborn began")
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@app.get("/cut-fetch")
async def cut_fetch(url: str) -> dict[str, str]:
    try:
        async with deadline(0.2), httpx2.AsyncClient(timeout=30) as client:
            await client.get(url)
    except TimeoutError:
        return {"trace_id": current_trace_id()}
    return {}


@app.get("/fetch")
async def fetch(url: str) -> dict[str, Any]:
    async with httpx2.AsyncClient(follow_redirects=True, timeout=60) as client:
        answer = await client.get(url)
    with httpx2.Client(timeout=60) as client:
        client.get(url)
    return {"trace_id": current_trace_id(), "status": answer.status_code}


telemetry.instrument_fastapi(app)


def main() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port_file = Path(sys.argv[1])
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(listening.getsockname()[1]))
    partial.rename(port_file)
    uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1)).run(sockets=[listening])


if __name__ == "__main__":
    main()
