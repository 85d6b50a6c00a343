"""An agent with every defect that an alert is there for: `broken_agent.py PORT [--well]`.

It blocks its event loop inside a deadline, burns tokens of an expensive model, and sends what it
records to a Collector that refuses it. Its telemetry is the real one; /metrics is on PORT. With
`--well` it only answers for the workers that share its PROMETHEUS_MULTIPROC_DIR.
"""

import asyncio
import http.server
import sys
import threading
import time

from spanloom.telemetry import deadline, llm_call, metrics, setup, step

DEADLINE_S = 2
TOKENS_A_SECOND = 400_000


class Metrics(http.server.BaseHTTPRequestHandler):
    """GET anything: the metrics."""

    def do_GET(self) -> None:
        body, kind = metrics.render(self.headers.get("Accept", ""))
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def burn() -> None:
    """Call a model as an agent does that loops."""
    while True:
        with step("loop"), llm_call("o3", provider="openai") as call:
            call.usage(input_tokens=TOKENS_A_SECOND, output_tokens=100)
        time.sleep(1)


async def block() -> None:
    """Hang where no cancellation reaches: in a call that blocks the event loop."""
    with step("request"):
        async with deadline(DEADLINE_S):
            while True:
                time.sleep(1)  # noqa: ASYNC251 - the defect


def main() -> None:
    """Be broken until killed."""
    setup("broken-agent")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if "--well" in sys.argv:
        threading.Event().wait()
    threading.Thread(target=burn, daemon=True).start()
    asyncio.run(block())


if __name__ == "__main__":
    main()
