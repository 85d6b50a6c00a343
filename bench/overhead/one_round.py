"""One variant in a fresh process: runs the workload and prints one line of JSON.

    python -m overhead.one_round VARIANT STATE_BYTES      (with bench/ as the working folder)

VARIANT is `nothing`, `by-hand`, `spanloom`, or a peer, in whose environment this then runs.
"""

import asyncio
import gc
import json
import os
import sys
import time
from statistics import median

SPANS = 10
BATCHES = 5
RUNS = 25
WARM_UP = 10


def main() -> None:
    variant, state_bytes = sys.argv[1], int(sys.argv[2])
    os.environ.setdefault("LANGSMITH_TRACING", "false")
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415  # after the environment is set

    from overhead.by_hand import ByHand  # noqa: PLC0415
    from overhead.recording import attribute_bytes, null_provider  # noqa: PLC0415
    from overhead.tracers import PEERS, Callbacks  # noqa: PLC0415
    from overhead.workload import Agent, Workload  # noqa: PLC0415

    peer = PEERS.get(variant)
    provider, exporter = null_provider(with_processor=peer is None or not peer.brings_processor)
    callbacks: Callbacks = None
    agent = Agent()
    if variant == "by-hand":
        agent = ByHand(provider.get_tracer("by hand"), spans=SPANS)
    elif variant == "spanloom":
        from spanloom.telemetry.langgraph import LangGraphInstrumentor  # noqa: PLC0415

        LangGraphInstrumentor().instrument(tracer_provider=provider)
    elif peer is not None:
        callbacks = peer.switch_on(provider, exporter)
    workload = Workload(agent, spans=SPANS, state_bytes=state_bytes)
    with asyncio.Runner() as runner:
        runner.run(workload.run(WARM_UP, callbacks))
        provider.force_flush()
        kept: list[ReadableSpan] = []
        exporter.kept = kept
        runner.run(workload.run(1, callbacks))
        provider.force_flush()
        exporter.kept = None
        times = []
        for _ in range(BATCHES):
            gc.collect()
            start = time.process_time()
            runner.run(workload.run(RUNS, callbacks))
            provider.force_flush()
            times.append((time.process_time() - start) / RUNS * 1e6)
    values, everything = attribute_bytes(kept)
    found = {
        "best": min(times),
        "median": median(times),
        "spans": len(kept),
        "value_bytes": values,
        "bytes": everything,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
