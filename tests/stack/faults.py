"""Faults on the wire: a proxy in front of the offline LLM, and a service whose agent meets them."""

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.free_ports import free_port
from tests.stack.service import Service, agent_service

Mode = Literal["pass", "refuse", "hang"]
# The offline models have no price of their own: these make 6,000 tokens about 60 cents.
PRICES = """
[[price]]
model = "offline-*"
input = 100
output = 100
"""
# Long enough for a question that is answered on a machine that stood still for a while.
DEADLINE_S = 12


class FaultyModel:
    """Passes requests on to an LLM endpoint on loopback, refuses them with 429, or keeps them.

    Only POST meets faults: GET is how readiness asks.
    """

    def __init__(self, upstream_port: int) -> None:
        self.mode: Mode = "pass"
        self._let_go = threading.Event()
        faulty = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on(b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if faulty.mode == "refuse":
                    self._say(429, b'{"error": {"message": "too many requests", "code": "429"}}')
                elif faulty.mode == "hang":
                    faulty._let_go.wait()
                    self.close_connection = True
                else:
                    self._pass_on(body)

            def _pass_on(self, body: bytes) -> None:
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
                kept = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                with contextlib.closing(upstream):
                    upstream.request(self.command, self.path, body, kept)
                    answer = upstream.getresponse()
                    self._say(
                        answer.status, answer.read(), answer.getheader("Content-Type", "text/plain")
                    )

            def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
                with contextlib.suppress(OSError):  # the caller's deadline was earlier
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let go of what is kept, and listen no longer."""
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Faulty:
    """A running service and what stands between it and its LLM."""

    service: Service
    model: FaultyModel

    def good(self) -> None:
        """Questions that are answered: two tools, an error of a tool, passages, Chinese text."""
        for question in (
            "What is 12*7?",
            "What time is it in Shanghai?",
            "What is 5/0?",
            "What does a KV cache save, and what does it cost?",
            "什么是 KV 缓存？",
        ):
            _, answer = self.service.ask(question)
            assert answer.status_code == 200, answer.text

    def refused(self) -> None:
        """The provider says 429: our callers get 503."""
        self._fails("refuse", 503)

    def timed_out(self) -> None:
        """The LLM never answers: the request is cut at its deadline."""
        self._fails("hang", 504)

    def _fails(self, mode: Mode, status: int) -> None:
        self.model.mode = mode
        try:
            _, answer = self.service.ask("What is tail sampling?")
        finally:
            self.model.mode = "pass"
        assert answer.status_code == status, answer.text


@contextlib.contextmanager
def faulty_service(folder: Path, endpoint: str, **env: str) -> Iterator[Faulty]:
    """The agent service with an LLM that can be made to fail, a price for it, and a spool."""
    folder.mkdir(parents=True, exist_ok=True)
    prices = folder / "prices.toml"
    prices.write_text(PRICES, encoding="utf-8")
    port = free_port()
    model = FaultyModel(port)
    settings = {
        "AGENT_LLM_BASE_URL": model.url,
        "AGENT_LLM_MODEL": "offline-small",
        "AGENT_DEADLINE_S": str(DEADLINE_S),
        "SPANLOOM_PRICES": str(prices),
        "SPANLOOM_SPOOL_DIR": str(folder / "spool"),
    }
    with (
        contextlib.closing(model),
        agent_service(folder, endpoint, given={"offline-llm": port}, **(settings | env)) as running,  # type: ignore[arg-type]
    ):
        yield Faulty(running, model)
