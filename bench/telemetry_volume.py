"""What a request of the service sends: spans, log records, metric points, and their bytes.

    python bench/telemetry_volume.py            # two minutes
    python bench/telemetry_volume.py --write    # docs/scaling.md

The real processes answer questions and export to a sink on loopback that keeps what it gets.
"""

import argparse
import contextlib
import gzip
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from overhead.report import Table, machine, write
from overhead.service_stack import ServiceStack, otlp_sink

DOCUMENT = Path(__file__).parents[1] / "docs/scaling.md"
WARM_UP = 8


@dataclass(frozen=True)
class Volume:
    """Of one signal."""

    items: int
    encoded: int
    """Bytes of protobuf."""
    compressed: int
    """Bytes with gzip, in the requests as they came."""


def volumes(taken: Iterable[tuple[str, str, bytes]]) -> dict[str, Volume]:
    """By path, of the requests that a sink kept."""
    items: Counter[str] = Counter()
    encoded: Counter[str] = Counter()
    compressed: Counter[str] = Counter()
    for path, encoding, body in taken:
        plain = gzip.decompress(body) if encoding == "gzip" else body
        items[path] += count(path, plain)
        encoded[path] += len(plain)
        compressed[path] += len(gzip.compress(plain))
    return {path: Volume(items[path], encoded[path], compressed[path]) for path in items}


def count(path: str, body: bytes) -> int:
    """Spans, log records or metric points of a request."""
    if path == "/v1/traces":
        spans = ExportTraceServiceRequest.FromString(body).resource_spans
        return sum(len(scope.spans) for one in spans for scope in one.scope_spans)
    if path == "/v1/logs":
        logs = ExportLogsServiceRequest.FromString(body).resource_logs
        return sum(len(scope.log_records) for one in logs for scope in one.scope_logs)
    if path == "/v1/metrics":
        metrics = ExportMetricsServiceRequest.FromString(body).resource_metrics
        return sum(
            len(getattr(metric, metric.WhichOneof("data")).data_points)
            for one in metrics
            for scope in one.scope_metrics
            for metric in scope.metrics
        )
    raise SystemExit(f"a request to {path} is no OTLP")


def measure(requests: int, **settings: str) -> dict[str, Volume]:
    """Ask, wait until all has been sent, and count what `requests` questions added."""
    with (
        tempfile.TemporaryDirectory() as folder,
        otlp_sink(keep=True) as sink,
        contextlib.ExitStack() as processes,
    ):
        assert sink.kept is not None
        print("starting the service", file=sys.stderr)
        service = ServiceStack(
            Path(folder) / "service",
            processes,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            **settings,
        )
        service.batch(WARM_UP)
        time.sleep(3)  # the last batches of the warm-up
        before = len(sink.kept)
        print(f"asking {requests} questions", file=sys.stderr)
        service.batch(requests)
        time.sleep(3)
        return volumes(sink.kept[before:])


def table(found: dict[str, Volume], quiet: dict[str, Volume], requests: int) -> Table:
    """A row a signal; metrics do not grow with requests, and have none."""
    rows = [
        row("spans", found["/v1/traces"], requests),
        row("log records", found["/v1/logs"], requests),
        row("… without a line a step", quiet["/v1/logs"], requests),
    ]
    return Table(
        "What one request sends",
        f"{machine()}. Means of {requests} requests of `POST /chat`, of all three processes; "
        "gzip in the batches as they came.",
        ("signal", "a request", "bytes a request", "bytes each", "bytes each, gzip"),
        rows,
    )


def row(name: str, volume: Volume, requests: int) -> list[str]:
    """One line of the table."""
    return [
        name,
        f"{volume.items / requests:.1f}",
        f"{volume.encoded / requests:,.0f}",
        f"{volume.encoded / volume.items:,.0f}",
        f"{volume.compressed / volume.items:,.0f}",
    ]


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--write", action="store_true", help=f"write into {DOCUMENT.name}")
    arguments = parser.parse_args()
    if arguments.requests < 4:
        parser.error("ask four questions at least")
    found = table(
        measure(arguments.requests),
        measure(arguments.requests, SPANLOOM_LOG_STEPS="false"),
        arguments.requests,
    )
    found.show()
    if arguments.write:
        write(DOCUMENT, "volume", found.markdown())


if __name__ == "__main__":
    main()
