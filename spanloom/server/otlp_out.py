"""Sending OTLP traces that are bytes already: one request, and what its answer means.

    http://HOST:PORT, https://…   POST /v1/traces, protobuf
    grpc://HOST:PORT, grpcs://…   TraceService/Export

`OTEL_EXPORTER_OTLP_HEADERS` (a token) and `OTEL_EXPORTER_OTLP_CERTIFICATE` (a CA) are honoured.
What may be sent again follows opentelemetry-proto, docs/specification.md, with one difference: a
wrong address or token (401, 404, UNIMPLEMENTED …) is no reason to drop what was to be sent.
"""

import contextlib
import enum
import os
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.aio
import httpx2
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from spanloom.errors import ConfigurationError
from spanloom.otlp import PROTOBUF
from spanloom.server.security import is_loopback
from spanloom.server.signals import TRACES

_REFUSED: Final = frozenset({400, 422})
_TOO_LARGE: Final = 413
_OK: Final = 200
# What gRPC in C, Go and Java says of a message over the limit. Nothing else tells it from a rate
# limit, which is the same code, and no reason to drop a span.
_OVER_THE_LIMIT: Final = ("larger than max", "exceeds maximum")
_SHOWN: Final = 300
"""Characters of a foreign error message."""


class Outcome(enum.Enum):
    """What became of a request."""

    TAKEN = enum.auto()
    REFUSED = enum.auto()
    """Never to be taken, whoever sends it again."""
    TOO_LARGE = enum.auto()
    AGAIN = enum.auto()
    """Not now, or nobody is there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request, and what was said about it."""

    outcome: Outcome
    message: str = ""
    retry_after_s: float = 0.0
    rejected: int = 0
    """Spans of a request that was taken which were left out (partial success)."""


class Sender(Protocol):
    """One way to a backend."""

    async def send(self, message: bytes) -> Answer:
        """Send OTLP TracesData; never raises for what the other side or the network does."""

    async def close(self) -> None:
        """Free the connection."""


def sender_to(url: str, timeout_s: float) -> Sender:
    """The way to a URL; ConfigurationError says what is wrong with it."""
    split = urlsplit(url)
    try:
        is_whole = bool(split.hostname) and (split.port is None or split.port > 0)
    except ValueError:
        is_whole = False
    if not is_whole or split.scheme not in {"http", "https", "grpc", "grpcs"}:
        raise ConfigurationError(
            f"--to {url!r} is not an OTLP address: write http://HOST:PORT (OTLP/HTTP) or "
            "grpc://HOST:PORT (OTLP/gRPC), https:// or grpcs:// with TLS"
        )
    headers = parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True)
    ca = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE", "")
    try:
        roots = Path(ca).read_bytes() if ca else None
        if split.scheme.startswith("grpc"):
            return _GrpcSender(split.netloc, split.scheme == "grpcs", headers, roots, timeout_s)
        context = ssl.create_default_context(cafile=ca or None)
        return _HttpSender(url, headers, context, timeout_s)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_CERTIFICATE={ca!r} cannot be used: {error}"
        ) from error


class _HttpSender:
    def __init__(self, url: str, headers: Any, context: ssl.SSLContext, timeout_s: float) -> None:
        self._url = url.rstrip("/") + TRACES.path
        self._client = httpx2.AsyncClient(
            headers={**headers, "Content-Type": PROTOBUF},
            verify=context,
            timeout=timeout_s,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),  # no proxy on loopback
        )

    async def send(self, message: bytes) -> Answer:
        try:
            response = await self._client.post(self._url, content=message)
        except httpx2.HTTPError as error:
            return Answer(Outcome.AGAIN, f"{self._url}: {str(error) or type(error).__name__}")
        status = response.status_code
        said = f"{self._url} answers {status}: {_readable(response.content)}"
        if status == _OK:
            return _taken(response.content)
        if status == _TOO_LARGE:
            return Answer(Outcome.TOO_LARGE, said)
        if status in _REFUSED:
            return Answer(Outcome.REFUSED, said)
        return Answer(Outcome.AGAIN, said, _seconds(response.headers.get("retry-after", "0")))

    async def close(self) -> None:
        await self._client.aclose()


class _GrpcSender:
    def __init__(
        self, target: str, is_secure: bool, headers: Any, roots: bytes | None, timeout_s: float
    ) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._metadata = tuple((key.lower(), value) for key, value in headers.items())
        # gRPC's own back-off would go up to two minutes; ours decides.
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = (
            grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
            if is_secure
            else grpc.aio.insecure_channel(target, options)
        )
        self._export = self._channel.unary_unary(f"/{TRACES.grpc_service}/Export")

    async def send(self, message: bytes) -> Answer:
        try:
            response = await self._export(message, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return self._failed(error)
        return _taken(response)

    def _failed(self, error: "grpc.aio.AioRpcError") -> Answer:
        code = error.code()
        details = error.details() or ""
        said = f"{self._target} answers {code.name}: {details[:_SHOWN]}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and any(
            words in details for words in _OVER_THE_LIMIT
        ):
            return Answer(Outcome.TOO_LARGE, said)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return Answer(Outcome.REFUSED, said)
        return Answer(Outcome.AGAIN, said, _retry_delay(error) or 0.0)

    async def close(self) -> None:
        await self._channel.close()


def _taken(body: bytes) -> Answer:
    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:  # a proxy that says 200 to everything has not taken it
        return Answer(Outcome.AGAIN, f"the answer is not OTLP: {_readable(body)}")
    return Answer(
        Outcome.TAKEN, partial.error_message[:_SHOWN], rejected=max(0, partial.rejected_spans)
    )


def _retry_delay(error: "grpc.aio.AioRpcError") -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with contextlib.suppress(DecodeError):
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


def _seconds(retry_after: str) -> float:
    """A Retry-After header: seconds, or a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


def _readable(body: bytes) -> str:
    with contextlib.suppress(DecodeError, UnicodeDecodeError):
        said: str = Status.FromString(body).message
        if said:
            return said[:_SHOWN]
    return body[:_SHOWN].decode("utf-8", "replace")
