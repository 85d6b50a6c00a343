"""Our own query API, lossless: traces, logs and metrics come back as the OTLP they came in as.

    GET /api/spanloom/traces?service=&operation=&tag=k:v&tags={json}&start_ns=&end_ns=
                             &min_duration_ns=&max_duration_ns=&errors=&limit=
    GET /api/spanloom/traces/{id}                    {"trace": TracesData}, and while something
                             is open {"open": TracesData, "open_states": {span id: {…}}}
    GET /api/spanloom/traces/{id}/spans/{span_id}    {"trace": TracesData} of that one span
    GET /api/spanloom/traces/{id}/logs?limit=        LogsData
    GET /api/spanloom/services
    GET /api/spanloom/services/{service}/operations
    GET /api/spanloom/metrics?service=
    GET /api/spanloom/metrics/{name}?service=&start_ns=&end_ns=&limit=   MetricsData

64-bit numbers are text, as in OTLP JSON. Errors are `{"error": sentence}`.
"""

from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spanloom.contract import Reader
from spanloom.model import MetricQuery, Trace, TraceQuery, TraceSummary
from spanloom.otlp import logs_to_json, metrics_to_json, traces_to_json
from spanloom.server import query_params
from spanloom.server.responses import (
    Endpoint,
    guarded,
    in_thread,
    json_response,
    native_error,
)

DEFAULT_TRACES: Final = 20
DEFAULT_LOGS: Final = 10_000
DEFAULT_POINTS: Final = 1_000
MAX_POINTS: Final = 100_000


def routes(reader: Reader) -> list[Route]:
    """The API over a store."""
    api = _NativeApi(reader)
    endpoints: list[tuple[str, Endpoint]] = [
        ("/traces", api.traces),
        ("/traces/{trace_id}", api.trace),
        ("/traces/{trace_id}/spans/{span_id}", api.span),
        ("/traces/{trace_id}/logs", api.logs),
        ("/services", api.services),
        ("/services/{service:path}/operations", api.operations),
        ("/metrics", api.metric_names),
        ("/metrics/{name:path}", api.metric),
    ]
    return [
        Route(f"/api/spanloom{path}", guarded(endpoint, native_error))
        for path, endpoint in endpoints
    ]


def trace_query(params: QueryParams) -> TraceQuery:
    """What `/api/spanloom/traces` asks for. Raises QueryError."""
    tags = query_params.tags_from_pairs(params.getlist("tag"))
    if params.get("tags"):  # for keys that hold a colon
        tags |= query_params.tags_from_json(params["tags"])
    if query_params.boolean(params.get("errors", ""), "errors"):
        tags["error"] = "true"
    start_ns, end_ns = _optional(params, "start_ns"), _optional(params, "end_ns")
    query_params.check_range(start_ns, end_ns)
    min_ns, max_ns = _optional(params, "min_duration_ns"), _optional(params, "max_duration_ns")
    query_params.check_durations(min_ns, max_ns)
    return TraceQuery(
        service=params.get("service") or None,
        operation=params.get("operation") or None,
        tags=tags,
        start_ns=start_ns,
        end_ns=end_ns,
        min_duration_ns=min_ns,
        max_duration_ns=max_ns,
        limit=_limit(params, DEFAULT_TRACES, query_params.MAX_LIMIT),
    )


def summary_json(summary: TraceSummary) -> dict[str, Any]:
    """One line of a trace list."""
    usage = summary.usage
    return {
        "trace_id": summary.trace_id,
        "root_service": summary.root_service,
        "root_name": summary.root_name,
        "start_time_unix_nano": str(summary.start_time_unix_nano),
        "duration_ns": str(summary.duration_ns),
        "span_count": summary.span_count,
        "error_count": summary.error_count,
        "services": list(summary.services),
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
        },
        "open_span_count": summary.open_span_count,
    }


def trace_json(trace: Trace) -> dict[str, Any]:
    """A whole trace: finished spans and open ones apart, so that nobody mistakes one kind."""
    document: dict[str, Any] = {"trace": traces_to_json(trace.spans)}
    if trace.open_spans:
        document["open"] = traces_to_json([one.span for one in trace.open_spans])
        document["open_states"] = {
            one.span.span_id: {
                "state": one.state.value,
                "process": one.process,
                "revision": one.revision,
            }
            for one in trace.open_spans
        }
    return document


class _NativeApi:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def traces(self, request: Request) -> Response:
        query = trace_query(request.query_params)
        summaries = await in_thread(self._reader.find_summaries, query)
        return json_response({"traces": [summary_json(summary) for summary in summaries]})

    async def trace(self, request: Request) -> Response:
        trace_id = query_params.trace_id(request.path_params["trace_id"])
        return await in_thread(self._trace, trace_id)

    async def span(self, request: Request) -> Response:
        trace_id = query_params.trace_id(request.path_params["trace_id"])
        span_id = request.path_params["span_id"].lower()
        span = await in_thread(self._reader.get_span, trace_id, span_id)
        if span is None:
            return native_error(404, f"Trace {trace_id} has no span {span_id[:16]} (yet).")
        return json_response({"trace": traces_to_json([span])})

    def _trace(self, trace_id: str) -> Response:
        # Built in the reader's thread: writing 10,000 spans takes longer than reading them.
        trace = self._reader.get_trace(trace_id)
        if trace is None:
            return native_error(404, f"No span of trace {trace_id} is stored (yet).")
        return json_response(trace_json(trace))

    async def logs(self, request: Request) -> Response:
        trace_id = query_params.trace_id(request.path_params["trace_id"])
        limit = _limit(request.query_params, DEFAULT_LOGS, MAX_POINTS)
        events = await in_thread(self._reader.trace_logs, trace_id, limit)
        return json_response({"resourceLogs": [], **logs_to_json(events)})

    async def services(self, _request: Request) -> Response:
        return json_response({"services": await in_thread(self._reader.services)})

    async def operations(self, request: Request) -> Response:
        found = await in_thread(self._reader.operations, request.path_params["service"])
        operations = [{"name": found_one.name, "kind": found_one.kind.value} for found_one in found]
        return json_response({"operations": operations})

    async def metric_names(self, request: Request) -> Response:
        service = request.query_params.get("service") or None
        return json_response({"metrics": await in_thread(self._reader.metric_names, service)})

    async def metric(self, request: Request) -> Response:
        params = request.query_params
        start_ns, end_ns = _optional(params, "start_ns"), _optional(params, "end_ns")
        query_params.check_range(start_ns, end_ns)
        query = MetricQuery(
            name=request.path_params["name"],
            service=params.get("service") or None,
            start_ns=start_ns,
            end_ns=end_ns,
            limit=_limit(params, DEFAULT_POINTS, MAX_POINTS),
        )
        points = await in_thread(self._reader.metric_points, query)
        return json_response({"resourceMetrics": [], **metrics_to_json(points)})


def _optional(params: QueryParams, name: str) -> int | None:
    text = params.get(name)
    return query_params.integer(text, name) if text else None


def _limit(params: QueryParams, default: int, maximum: int) -> int:
    text = params.get("limit")
    return query_params.integer(text, "limit", minimum=1, maximum=maximum) if text else default
