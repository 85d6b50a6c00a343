"""Jaeger's legacy JSON query API, unchanged for the Jaeger UI and Grafana's data source.

    GET /api/services                       names
    GET /api/services/{service}/operations  names
    GET /api/operations?service=&spanKind=  names with kinds
    GET /api/traces?…                       search, or traces by id (`traceID`, repeated)
    GET /api/traces/{id}                    one trace

Every answer is `{data, total, limit, offset, errors}`. Unlike Jaeger before 2.20 a search needs
no service name, and without `start` and `lookback` it looks at everything that is stored.
"""

import time
from typing import Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spanloom.contract import Reader
from spanloom.errors import QueryError
from spanloom.model import SpanKind, Trace, TraceQuery
from spanloom.server import query_params
from spanloom.server.jaeger_json import trace_json
from spanloom.server.responses import (
    guarded,
    in_thread,
    jaeger_envelope,
    jaeger_error,
    json_response,
)

DEFAULT_LIMIT: Final = 100  # Jaeger's own
MAX_LIMIT: Final = 1_500
"""As many as the Jaeger UI offers: whole traces are in memory at once, 1,500 of 40 spans with
their JSON some 600 MB."""
_NS_PER_US: Final = 1_000
# A span kind that is not known makes Jaeger answer with nothing rather than an error.
_KINDS: Final = {kind.name.lower(): kind for kind in SpanKind}


def routes(reader: Reader) -> list[Route]:
    """The API over a store."""
    api = _JaegerApi(reader)
    return [
        Route("/api/services", guarded(api.services, jaeger_error)),
        Route(
            "/api/services/{service:path}/operations", guarded(api.service_operations, jaeger_error)
        ),
        Route("/api/operations", guarded(api.operations, jaeger_error)),
        Route("/api/traces", guarded(api.search, jaeger_error)),
        Route("/api/traces/{trace_id}", guarded(api.trace, jaeger_error)),
    ]


def trace_query(params: QueryParams, now_ns: int) -> TraceQuery:
    """What `/api/traces` asks for. Raises QueryError."""
    start_ns = _microseconds(params, "start")
    lookback = params.get("lookback", "")
    if start_ns is None and lookback not in ("", "custom"):  # the UI's word for "see start"
        start_ns = now_ns - query_params.duration_ns(lookback, "lookback")
    end_ns = _microseconds(params, "end")
    query_params.check_range(start_ns, end_ns)
    min_ns = _duration(params, "minDuration")
    max_ns = _duration(params, "maxDuration")
    query_params.check_durations(min_ns, max_ns)
    tags = query_params.tags_from_pairs(params.getlist("tag"))
    for text in params.getlist("tags"):
        if text:
            tags |= query_params.tags_from_json(text)
    limit = params.get("limit")
    return TraceQuery(
        service=params.get("service") or None,
        operation=params.get("operation") or None,
        tags=tags,
        start_ns=start_ns,
        end_ns=end_ns,
        min_duration_ns=min_ns,
        max_duration_ns=max_ns,
        limit=query_params.integer(limit, "limit", minimum=1, maximum=MAX_LIMIT)
        if limit
        else DEFAULT_LIMIT,
    )


class _JaegerApi:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def services(self, _request: Request) -> Response:
        names = await in_thread(self._reader.services)
        return json_response(jaeger_envelope(names, total=len(names)))

    async def service_operations(self, request: Request) -> Response:
        service = request.path_params["service"]
        found = await in_thread(self._reader.operations, service)
        names = sorted({operation.name for operation in found})
        return json_response(jaeger_envelope(names, total=len(names)))

    async def operations(self, request: Request) -> Response:
        service = request.query_params.get("service")
        if not service:
            raise QueryError("parameter 'service' is required")
        kind = request.query_params.get("spanKind", "").lower()
        found = await in_thread(self._reader.operations, service)
        data = [
            {"name": operation.name, "spanKind": _kind_name(operation.kind)}
            for operation in found
            if not kind or operation.kind is _KINDS.get(kind)
        ]
        return json_response(jaeger_envelope(data, total=len(data)))

    async def search(self, request: Request) -> Response:
        params = request.query_params
        ids = [query_params.trace_id(text) for text in params.getlist("traceID")]
        query = trace_query(params, time.time_ns())
        return await in_thread(self._by_ids if ids else self._find, ids, query)

    def _by_ids(self, ids: list[str], _query: TraceQuery) -> Response:
        traces: list[Trace] = []
        problems = []
        for trace_id in dict.fromkeys(ids):
            trace = self._reader.get_trace(trace_id)
            if trace is None:
                problems.append({"msg": "trace not found", "traceID": trace_id})
            else:
                traces.append(trace)
        return _traces_response(traces, problems)

    def _find(self, _ids: list[str], query: TraceQuery) -> Response:
        return _traces_response(self._reader.find_traces(query), [])

    async def trace(self, request: Request) -> Response:
        trace_id = query_params.trace_id(request.path_params["trace_id"])
        # Grafana sends start and end here, in milliseconds where Jaeger documents microseconds.
        # An id is unique without them, so they are not read.
        return await in_thread(self._one, trace_id)

    def _one(self, trace_id: str) -> Response:
        trace = self._reader.get_trace(trace_id)
        if trace is None:
            return jaeger_error(404, "trace not found")
        return _traces_response([trace], [])


def _traces_response(traces: list[Trace], problems: list[dict[str, str]]) -> Response:
    # Built in the reader's thread: mapping and writing 10,000 spans takes longer than reading.
    data = [trace_json(trace) for trace in traces]
    return json_response(jaeger_envelope(data, problems=problems or None))


def _kind_name(kind: SpanKind) -> str:
    return "" if kind is SpanKind.UNSPECIFIED else kind.name.lower()


def _microseconds(params: QueryParams, name: str) -> int | None:
    text = params.get(name)
    if not text:
        return None
    return query_params.integer(text, name, maximum=(2**63 - 1) // _NS_PER_US) * _NS_PER_US


def _duration(params: QueryParams, name: str) -> int | None:
    text = params.get(name)
    return query_params.duration_ns(text, name) if text else None
