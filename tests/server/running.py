"""A real server for tests: own thread, own loop, free ports, a store on disk."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from spanloom.model import LogEvent, MetricPoint, Span
from spanloom.otlp import logs_to_message, metrics_to_message, traces_to_message
from spanloom.server.app import Addresses, ServerConfig, serve

PROTOBUF = "application/x-protobuf"
WAIT_S = 30


class Client:
    """Talks to a running server."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses
        self.otlp = httpx2.Client(base_url=addresses.otlp_http, timeout=WAIT_S, trust_env=False)
        self.query = httpx2.Client(base_url=addresses.query, timeout=WAIT_S, trust_env=False)

    def close(self) -> None:
        self.otlp.close()
        self.query.close()

    def send(
        self,
        *,
        spans: Iterable[Span] = (),
        logs: Iterable[LogEvent] = (),
        metrics: Iterable[MetricPoint] = (),
    ) -> None:
        """Post what is given and require each acknowledgement."""
        for path, message in (
            ("/v1/traces", traces_to_message(spans)),
            ("/v1/logs", logs_to_message(logs)),
            ("/v1/metrics", metrics_to_message(metrics)),
        ):
            body = message.SerializeToString()
            if body:
                answer = self.post(path, body)
                assert (answer.status_code, answer.content) == (200, b"")

    def post(self, path: str, body: Any, content_type: str = PROTOBUF, **headers: str) -> Any:
        """One OTLP request; `_` in a header's name stands for a dash."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.otlp.post(path, content=body, headers={"content-type": content_type, **named})

    def json(self, path: str, **params: Any) -> Any:
        """A query's answer, which must be a 200."""
        answer = self.query.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def running(data_dir: Path, **config: Any) -> Iterator[Client]:
    """Start a server, yield a client, stop it and require a clean end."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        stop = asyncio.Event()
        found["stop"] = (asyncio.get_running_loop(), stop)

        def on_ready(addresses: Addresses) -> None:
            found["addresses"] = addresses
            ready.set()

        free = {"otlp_grpc_port": 0, "otlp_http_port": 0, "query_port": 0}
        await serve(ServerConfig(data_dir, **(free | config)), on_ready=on_ready, stop=stop)

    def target() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001  # handed to the test's thread
            found["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=target, name="server-under-test")
    thread.start()
    assert ready.wait(WAIT_S)
    if "error" in found:
        thread.join()
        raise found["error"]
    client = Client(found["addresses"])
    try:
        yield client
    finally:
        client.close()
        loop, stop = found["stop"]
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        assert not thread.is_alive()
    if "error" in found:
        raise found["error"]
