"""A loopback server: another service that is called, and an OpenAI-compatible model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = ("你", "好", " ", "world")
TOKENS = (11, 5)
STALLING = "stalling"
"""Name of the model that stops in the middle of a stream."""


class Server(ThreadingHTTPServer):
    """GET /NUMBER notes the traceparent under the number; POST answers as OpenAI does."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.headers: dict[str, str] = {}
        self.model_headers: list[str] = []
        self.release = threading.Event()
        """Lets a stalled stream end."""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of a stream is what is wanted here."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # else the answer waits for the acknowledgement of its head, 40 ms on Linux
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.headers[self.path.lstrip("/")] = self.headers.get("traceparent", "")
        self._send(b"{}")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.model_headers.append(self.headers.get("traceparent", ""))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for index, part in enumerate(ANSWER):
            self._event([{"index": 0, "delta": {"role": "assistant", "content": part}}])
            if index == 2 and request["model"] == STALLING:
                self.server.release.wait(60)
                return
        self._event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        given, taken = TOKENS
        usage = {"prompt_tokens": given, "completion_tokens": taken, "total_tokens": given + taken}
        if request.get("stream_options", {}).get("include_usage"):
            self._event([], usage=usage)
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> None:
        head = {"id": "chatcmpl-1", "created": 1, "model": "offline-2026"}
        data = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()
