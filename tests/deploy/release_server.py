"""What runs in the fake host's containers: /health and /ready as the API has them, or a fault.

    python release_server.py REVISION FAULT

FAULT is one of: none; unhealthy (/health is 500); not-ready (/ready is 503); crash (ends after a
few answers, and again after every restart); slow (listens only after 3 s); never (does not listen).
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS_BEFORE_CRASH = 4
SLOW_S = 3.0
revision, fault = sys.argv[1:]
answers = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        global answers  # noqa: PLW0603
        answers += 1
        if fault == "crash" and answers > ANSWERS_BEFORE_CRASH:
            os._exit(1)
        failing = {"unhealthy": "/health", "not-ready": "/ready"}.get(fault)
        body = json.dumps({"status": "ok", "version": "0.1.0", "revision": revision}).encode()
        self.send_response(503 if self.path == failing else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        sys.stderr.write(f"{revision} {fault}: {format % args}\n")


if fault == "never":
    time.sleep(3600)
if fault == "slow":
    time.sleep(SLOW_S)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["AGENT_API_PORT"])), Handler).serve_forever()
