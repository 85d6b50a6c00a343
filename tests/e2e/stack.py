"""The real processes on free ports, with articles in the index that only these tests know."""

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from spanloom.model import LogEvent, SpanKind, Trace
from spanloom.sources.http import HttpReader
from tests.free_ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 180
SHOWN_S = 60

# Facts that stand nowhere else: an answer that holds them was read in the index.
FACTS = {
    "marrowgate-boiler": (
        "en",
        "The Marrowgate boiler",
        (
            "The Marrowgate boiler house was built in 1911. "
            "Its boiler works at a pressure of 37 bar, and the safety valve opens at 41 bar. "
            "Coal came by the canal until 1958."
        ),
    ),
    "qinghe-telescope": (
        "zh",
        "青禾望远镜",
        (
            "青禾望远镜建在海拔 4730 米的云岭山顶。它的主镜直径是 6.8 米，由 37 块六边形镜片组成。"
            "观测站冬季的最低气温是零下 38 度，值班人员每两周轮换一次。"
        ),
    ),
}
# One for each of many callers at once: who asks about one must never hear of another.
NAMES = [
    "Abernquist", "Belloway", "Cindermoor", "Dunverry", "Eskholm", "Fallowmere", "Gorsewick",
    "Harrowden", "Inverlune", "Jessamine", "Kestrelby", "Lowmarsh", "Mistlethorn", "Nettlecombe",
    "Orrindale", "Penhallow", "Quarrick", "Ravensmead", "Silverbeck", "Thornwaite",
]  # fmt: skip
BARRELS = {name: 4001 + 37 * number for number, name in enumerate(NAMES)}


def write_corpus(folder: Path) -> Path:
    """The shipped articles and ours."""
    shutil.copytree(ROOT / "service/retrieval/corpus", folder)
    ours = folder / "only-in-this-test"
    ours.mkdir()
    articles = dict(FACTS)
    for name, barrels in BARRELS.items():
        articles[f"{name.lower()}-depot"] = (
            "en",
            f"The {name} depot",
            (
                f"The {name} depot stores {barrels} barrels of lamp oil. It is open on "
                "market days, and its keeper writes every delivery into a ledger."
            ),
        )
    for identifier, (language, title, text) in articles.items():
        (ours / f"{identifier}.md").write_text(
            f"---\nid: {identifier}\ntitle: {title}\nlanguage: {language}\nrelated: []\n---\n\n"
            f"# {title}\n\n{text}\n",
            encoding="utf-8",
        )
    return folder


def traceparent(*, sampled: bool = True) -> tuple[str, str, str]:
    """A caller's header, with its trace id and span id."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}", trace_id, span_id


@dataclass
class Stack:
    """Addresses of running processes, and what one asks of them."""

    process: subprocess.Popen[str]
    document: dict[str, Any]
    data_dir: Path
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=120))

    @property
    def api(self) -> str:
        return str(self.document["processes"]["api"])

    @property
    def query(self) -> str:
        return str(self.document["query"])

    @property
    def reader(self) -> HttpReader:
        return HttpReader(self.query)

    def pid(self, name: str) -> int:
        return int(self.document["pids"][name])

    def log(self, name: str) -> str:
        return Path(self.document["logs"][name]).read_text(encoding="utf-8")

    def ask(self, query: str, header: str | None = None, **body: str) -> httpx2.Response:
        headers = {} if header is None else {"traceparent": header}
        return self.client.post(f"{self.api}/chat", json={"query": query, **body}, headers=headers)

    def trace(self, trace_id: str, root: str = "POST /chat", *, unanswered: bool = False) -> Trace:
        """The trace once all of it has been stored.

        That is the request's own span, which ends last in its process, and for each call of another
        process that one's span of it: they send by their own clocks. `unanswered`: a call may have
        been cut before the other process knew of it.
        """
        end = time.monotonic() + SHOWN_S
        seen: Trace | None = None
        while time.monotonic() < end:
            seen = self.reader.get_trace(trace_id)
            if (
                seen is not None
                and any(span.name == root for span in seen.spans)
                and (unanswered or not _calls_without_an_answer(seen))
            ):
                return seen
            time.sleep(0.1)
        raise AssertionError(f"trace {trace_id} is not complete: {seen}")

    def logs(self, trace_id: str, *events: str) -> list[LogEvent]:
        """The trace's log lines once all of `events` are among them, each as often as given."""
        end = time.monotonic() + SHOWN_S
        wanted = Counter(events)
        while True:
            found = self.reader.trace_logs(trace_id)
            bodies = Counter(str(record.body) for record in found)
            if wanted <= bodies:
                return found
            assert time.monotonic() < end, f"{wanted - bodies} not among {bodies}"
            time.sleep(0.1)


def _calls_without_an_answer(trace: Trace) -> list[str]:
    """Names of HTTP calls that the process which was called has told nothing of yet."""
    parents = {span.parent_span_id for span in trace.spans}
    return [
        span.name
        for span in trace.spans
        if span.kind is SpanKind.CLIENT and span.name == "POST" and span.span_id not in parents
    ]


@contextlib.contextmanager
def running_stack(folder: Path, **env: str) -> Iterator[Stack]:
    """`spanloom up` on free ports, stopped as a user would: with Ctrl-C."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "AGENT_", "SPANLOOM_", "OPENAI_", "ANTHROPIC_"))
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "spanloom", "up"),
            *("--otlp-grpc-port", str(free_port()), "--otlp-http-port", str(free_port())),
            *("--query-port", str(free_port()), "--json", "--data-dir", str(folder / "var")),
        ],
        cwd=ROOT,
        env={
            **clean,
            "AGENT_CORPUS_PATH": str(write_corpus(folder / "corpus")),
            "AGENT_DATA_DIR": str(folder / "var"),
            # Not "--ports auto": two that start at once, as with test_up, could choose the same.
            "AGENT_API_PORT": str(free_port()),
            "AGENT_RETRIEVAL_PORT": str(free_port()),
            "AGENT_OFFLINE_LLM_PORT": str(free_port()),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
    errors: list[str] = []
    threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True).start()  # type: ignore[arg-type]
    try:
        try:
            line = lines.get(timeout=START_S)
        except queue.Empty:
            line = ""
        assert line, f"the processes did not start:\n{''.join(errors)}"
        yield Stack(process, json.loads(line), folder / "var")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
