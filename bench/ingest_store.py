"""How fast the store takes spans, and how fast it answers, on this machine.

    .venv/bin/python bench/ingest_store.py [SPANS]

Encoded OTLP requests of 512 spans (an agent run of 16 spans, ten attributes each) are decoded
and stored in one process; the generator's time is not counted. Rates are per CPU-second of this
process. Search times are medians of five.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from spanloom.contract import Batch
from spanloom.model import Resource, Scope, Span, SpanKind, TraceQuery
from spanloom.otlp import decode_traces, traces_to_message
from spanloom.store import SqliteStore, open_store

PER_REQUEST = 512
PER_TRACE = 16
SERVICES = [
    Resource({"service.name": f"service-{n}", "service.instance.id": f"i-{n}"}) for n in range(3)
]
SCOPE = Scope("bench", "1")


def requests(count: int, chance: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        spans: list[Span] = []
        while len(spans) < PER_REQUEST:
            spans.extend(agent_run(chance))
        yield traces_to_message(spans).SerializeToString()


def agent_run(chance: random.Random) -> list[Span]:
    trace_id, conversation = chance.randbytes(16).hex(), chance.randbytes(8).hex()
    now = time.time_ns()
    spans: list[Span] = []
    for n in range(PER_TRACE):
        spans.append(
            Span(
                trace_id=trace_id,
                span_id=chance.randbytes(8).hex(),
                parent_span_id=spans[-1].span_id if spans else "",
                name=f"operation {n % 12}",
                start_time_unix_nano=now + n * 1000,
                end_time_unix_nano=now + n * 1000 + chance.randrange(10**9),
                kind=SpanKind(1 + n % 3),
                flags=257,
                attributes={
                    "gen_ai.operation.name": "invoke_node" if n % 3 else "chat",
                    "gen_ai.request.model": "offline-small",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.usage.input_tokens": chance.randrange(2000),
                    "gen_ai.usage.output_tokens": chance.randrange(400),
                    "gen_ai.conversation.id": conversation,
                    "langgraph.step": n,
                    "langgraph.triggers": ("branch:to:node",),
                    "spanloom.outcome": "ok",
                    "http.response.status_code": 200,
                },
                resource=SERVICES[n % 3],
                scope=SCOPE,
            )
        )
    return spans


def ingest(store: SqliteStore, count: int) -> tuple[float, float, float]:
    """CPU seconds, seconds and, of the CPU seconds, those spent decoding."""
    cpu = wall = decoding = 0.0
    chance = random.Random(1)
    for _ in range(0, count, 20):
        bodies = list(requests(20, chance))
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        waiting = []
        for body in bodies:
            thread_start = time.thread_time()
            items = decode_traces(body, "application/x-protobuf").items
            decoding += time.thread_time() - thread_start
            waiting.append(store.submit(Batch(spans=items)))
        for future in waiting:
            future.result()
        cpu += time.process_time() - cpu_start
        wall += time.perf_counter() - wall_start
    return cpu, wall, decoding


def timed(call: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times) * 1000


def main() -> None:
    count = int(sys.argv[1]) // PER_REQUEST if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "spanloom.db", max_queue_items=50_000)
        cpu, wall, decoding = ingest(store, count)
        stats = store.stats()
        print(f"spans stored           {stats.spans:>12,}")
        print(f"per CPU-second         {stats.spans / cpu:>12,.0f}")
        print(f"  decoding alone       {stats.spans / decoding:>12,.0f}")
        print(f"per second             {stats.spans / wall:>12,.0f}")
        print(f"bytes per span on disk {stats.bytes / stats.spans:>12,.0f}")
        rare = {"gen_ai.usage.input_tokens": "1999"}
        newest = store.find_summaries(TraceQuery())[0]
        for name, call in {
            "trace by id": lambda: store.get_trace(newest.trace_id),
            "newest 20": lambda: store.find_summaries(TraceQuery()),
            "service + rare tag + duration": lambda: store.find_summaries(
                TraceQuery(service="service-1", tags=rare, min_duration_ns=900_000_000)
            ),
            "tag that never occurs": lambda: store.find_summaries(TraceQuery(tags={"no": "such"})),
            "tags that never meet": lambda: store.find_summaries(
                TraceQuery(service="service-1", tags={"gen_ai.operation.name": "embeddings"})
            ),
            "frequent tags that never meet": lambda: store.find_summaries(
                TraceQuery(tags={"gen_ai.operation.name": "chat", "langgraph.step": "1"})
            ),
        }.items():
            print(f"{name:<30} {timed(call):>8.1f} ms")
        store.close()


if __name__ == "__main__":
    main()
