"""A store elsewhere: Reader over the lossless API of a Spanloom server (`/api/spanloom/*`)."""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
import orjson

from spanloom import __version__
from spanloom.errors import (
    ConfigurationError,
    MalformedPayloadError,
    QueryError,
    SourceResponseError,
    SourceUnavailableError,
    StoreClosedError,
)
from spanloom.model import (
    LogEvent,
    MetricPoint,
    MetricQuery,
    OpenSpan,
    OpenState,
    Operation,
    Span,
    SpanKind,
    Trace,
    TraceQuery,
    TraceSummary,
    Usage,
)
from spanloom.otlp import Decoded, decode_logs, decode_metrics, decode_traces

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 30.0
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_JSON = "application/json"
_LARGEST = 2**63 - 1
_LARGEST_PORT = 65_535

Parameters = Sequence[tuple[str, str]]


def server_url(text: str) -> httpx2.URL:
    """The address of a server; ConfigurationError for what cannot be one."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ConfigurationError(f"{text!r} is not an address: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 0) > _LARGEST_PORT:
        raise ConfigurationError(
            f"{text!r} is not an address: write http://HOST:PORT (--url or SPANLOOM_URL)"
        )
    return url


class HttpReader:
    """Reads through a server; see `spanloom.contract.Reader` for what the methods promise.

    Besides the contract's errors: SourceUnavailableError where nothing answers in time,
    SourceResponseError where something answers that is not a Spanloom server.
    """

    def __init__(self, base_url: str, *, timeout_s: float = READ_TIMEOUT_S) -> None:
        url = server_url(base_url)
        self._base_url = str(url).rstrip("/")
        self._client = httpx2.Client(
            base_url=self._base_url,
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": f"spanloom/{__version__}"},
            # A proxy of the company's must not be asked for this machine's own ports.
            trust_env=not is_loopback(url.host),
        )

    def get_trace(self, trace_id: str) -> Trace | None:
        """Whole trace, or None where the server has no span of it."""
        document = self._get(f"/traces/{_checked(trace_id)}", missing_is_none=True)
        if document is None:
            return None
        spans = _in_order(self._decode(decode_traces, document, "trace"))
        still_open: list[OpenSpan] = []
        if "open" in document:
            unfinished = _in_order(self._decode(decode_traces, document, "open"))
            states = self._read(lambda: document["open_states"])
            still_open = self._read(lambda: [_open_span(span, states) for span in unfinished])
        return Trace(trace_id, spans, tuple(still_open)) if spans or still_open else None

    def get_span(self, trace_id: str, span_id: str) -> Span | None:
        """One span, or None where the server does not have it."""
        path = f"/traces/{_checked(trace_id)}/spans/{span_id}"
        if not _SPAN_ID.fullmatch(span_id):
            return None
        document = self._get(path, missing_is_none=True)
        if document is None:
            return None
        spans = self._decode(decode_traces, document, "trace")
        return spans[0] if spans else None

    def find_traces(self, query: TraceQuery) -> list[Trace]:
        """One request for the list and one for each trace."""
        found = (self.get_trace(summary.trace_id) for summary in self.find_summaries(query))
        # Retention may have dropped one in between.
        return [trace for trace in found if trace is not None]

    def find_summaries(self, query: TraceQuery) -> list[TraceSummary]:
        """One line per trace, newest first."""
        if query.limit <= 0 or _nothing_between(query.start_ns, query.end_ns):
            return []
        if (query.min_duration_ns or 0) > _LARGEST:
            return []
        parameters = _given(
            tags=orjson.dumps(dict(query.tags)).decode() if query.tags else None,
            service=query.service,
            operation=query.operation,
            start_ns=_lower_bound(query.start_ns),
            end_ns=_upper_bound(query.end_ns),
            min_duration_ns=_lower_bound(query.min_duration_ns),
            max_duration_ns=_upper_bound(query.max_duration_ns),
            limit=query.limit,
        )
        document = self._get("/traces", parameters)
        return self._read(lambda: [_summary(item) for item in document["traces"]])

    def trace_logs(self, trace_id: str, limit: int = 10_000) -> list[LogEvent]:
        """Log records of a trace, oldest first."""
        path = f"/traces/{_checked(trace_id)}/logs"
        if limit <= 0:
            return []
        document = self._get(path, _given(limit=limit), missing_is_none=True)
        if document is None:
            return []
        records = self._decode(decode_logs, document, None)
        return sorted(records, key=lambda record: record.timestamp_ns)[:limit]

    def services(self) -> list[str]:
        """Names of all services, sorted."""
        document = self._get("/services")
        return self._read(lambda: [str(name) for name in document["services"]])

    def operations(self, service: str) -> list[Operation]:
        """Span names and kinds of a service."""
        document = self._get(f"/services/{quote(service, safe='')}/operations")
        return self._read(
            lambda: [
                Operation(str(item["name"]), SpanKind(item["kind"]))
                for item in document["operations"]
            ]
        )

    def metric_points(self, query: MetricQuery) -> list[MetricPoint]:
        """Points of one metric, oldest first."""
        if query.limit <= 0 or _nothing_between(query.start_ns, query.end_ns):
            return []
        parameters = _given(
            service=query.service,
            start_ns=_lower_bound(query.start_ns),
            end_ns=_upper_bound(query.end_ns),
            limit=query.limit,
        )
        document = self._get(
            f"/metrics/{quote(query.name, safe='')}", parameters, missing_is_none=True
        )
        if document is None:
            return []
        points = self._decode(decode_metrics, document, None)
        return sorted(points, key=lambda point: point.time_unix_nano)

    def metric_names(self, service: str | None = None) -> list[str]:
        """Names of all metrics, sorted."""
        document = self._get("/metrics", _given(service=service))
        return self._read(lambda: [str(name) for name in document["metrics"]])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get(self, path: str, parameters: Parameters = (), *, missing_is_none: bool = False) -> Any:
        if self._client.is_closed:
            raise StoreClosedError("the reader is closed")
        try:
            response = self._client.get(f"/api/spanloom{path}", params=list(parameters))
        except RuntimeError as error:  # closed by another thread meanwhile
            raise StoreClosedError("the reader is closed") from error
        except httpx2.TimeoutException as error:
            raise SourceUnavailableError(
                f"{self._base_url} does not answer in time: is it overloaded, or is something "
                "else listening there? `spanloom doctor` checks"
            ) from error
        except httpx2.HTTPError as error:
            raise SourceUnavailableError(
                f"nothing answers at {self._base_url} ({error}): is `spanloom serve` or "
                "`spanloom up` running there? --url or SPANLOOM_URL names another address"
            ) from error
        if response.status_code == httpx2.codes.NOT_FOUND and missing_is_none:
            self._document(response)  # a 404 of our own is JSON: a stranger's says nothing
            return None
        if response.status_code == httpx2.codes.BAD_REQUEST:
            raise QueryError(_sentence(response) or "the server refused the query")
        if response.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            raise SourceUnavailableError(
                f"{self._base_url} cannot answer now: {_sentence(response) or 'try again later'}"
            )
        if response.status_code != httpx2.codes.OK:
            raise self._unexpected(f"status {response.status_code} {_sentence(response)}".rstrip())
        return self._document(response)

    def _document(self, response: httpx2.Response) -> Any:
        try:
            document = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise self._unexpected("not JSON") from error
        if not isinstance(document, dict):
            raise self._unexpected("not a JSON object")
        return document

    def _decode(
        self, decode: Callable[[bytes, str], Decoded[T]], document: Any, key: str | None
    ) -> Sequence[T]:
        part = self._read(lambda: document if key is None else document[key])
        try:
            return decode(orjson.dumps(part), _JSON).items
        except MalformedPayloadError as error:
            raise self._unexpected(str(error)) from error

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (KeyError, TypeError, ValueError) as error:
            raise self._unexpected(f"{type(error).__name__}: {error}") from error

    def _unexpected(self, what: str) -> SourceResponseError:
        return SourceResponseError(
            f"{self._base_url} does not answer as a Spanloom server of this version does "
            f"({what}): check --url or SPANLOOM_URL, and the server's version"
        )


def _checked(trace_id: str) -> str:
    if not _TRACE_ID.fullmatch(trace_id):
        raise QueryError(
            f"{trace_id[:80]!r} is not a trace id: it has 32 lowercase hexadecimal characters"
        )
    return trace_id


# The server takes bounds of 64 bits and refuses others, as it should with what a user typed; the
# contract takes any integer. A bound beyond all times there can be is none, or excludes everything.


def _lower_bound(value: int | None) -> int | None:
    return value if value is not None and value > 0 else None


def _upper_bound(value: int | None) -> int | None:
    return value if value is not None and value <= _LARGEST else None


def _nothing_between(start_ns: int | None, end_ns: int | None) -> bool:
    if start_ns is not None and (
        start_ns > _LARGEST or (end_ns is not None and start_ns >= end_ns)
    ):
        return True
    return end_ns is not None and end_ns <= 0


def _given(**values: str | int | None) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in values.items() if value is not None]


def _summary(item: Mapping[str, Any]) -> TraceSummary:
    usage = item["usage"]
    return TraceSummary(
        trace_id=str(item["trace_id"]),
        root_service=str(item["root_service"]),
        root_name=str(item["root_name"]),
        start_time_unix_nano=int(item["start_time_unix_nano"]),
        duration_ns=int(item["duration_ns"]),
        span_count=int(item["span_count"]),
        error_count=int(item["error_count"]),
        services=tuple(str(name) for name in item["services"]),
        usage=Usage(
            int(usage["input_tokens"]),
            int(usage["output_tokens"]),
            None if usage.get("cost_usd") is None else float(usage["cost_usd"]),
        ),
        # Missing in answers of servers that knew nothing of open spans.
        open_span_count=int(item.get("open_span_count", 0)),
    )


def _in_order(spans: Sequence[Span]) -> tuple[Span, ...]:
    return tuple(sorted(spans, key=lambda span: (span.start_time_unix_nano, span.span_id)))


def _open_span(span: Span, states: Mapping[str, Mapping[str, Any]]) -> OpenSpan:
    known = states[span.span_id]
    return OpenSpan(span, OpenState(known["state"]), str(known["process"]), int(known["revision"]))


def _sentence(response: httpx2.Response) -> str:
    """The server's own `{"error": sentence}`; "" where the body is something else."""
    try:
        return str(orjson.loads(response.content)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine, as far as the name tells."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
