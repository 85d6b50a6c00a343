"""OTLP between wire and model: protobuf, JSON and message objects, lossless both ways."""

from spanloom.otlp.decode import (
    JSON,
    PROTOBUF,
    Decoded,
    decode_logs,
    decode_metrics,
    decode_traces,
    logs_from_message,
    metrics_from_message,
    traces_from_message,
)
from spanloom.otlp.encode import (
    logs_to_json,
    logs_to_message,
    metrics_to_json,
    metrics_to_message,
    traces_to_json,
    traces_to_message,
)
from spanloom.otlp.limits import MAX_BODY_BYTES, decompress

__all__ = [
    "JSON",
    "MAX_BODY_BYTES",
    "PROTOBUF",
    "Decoded",
    "decode_logs",
    "decode_metrics",
    "decode_traces",
    "decompress",
    "logs_from_message",
    "logs_to_json",
    "logs_to_message",
    "metrics_from_message",
    "metrics_to_json",
    "metrics_to_message",
    "traces_from_message",
    "traces_to_json",
    "traces_to_message",
]
