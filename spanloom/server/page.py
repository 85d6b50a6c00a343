"""The drill-down page: a list of recent traces, and one trace as a waterfall.

    GET /               recent traces, filters
    GET /trace?id=      the jump box: goes to /trace/{id}; takes a whole traceparent as well
    GET /trace/{id}     waterfall, span details, log lines; `?uiFind=` as in Jaeger's links
    GET /search         Jaeger UI's address of the list: goes to /
    GET /static/…       our own style sheet and scripts, nothing from elsewhere

Rendered by Jinja2 with autoescape; whatever comes from telemetry is text, never markup.
"""

import re
import time
from pathlib import Path
from typing import Any, Final

import jinja2
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from spanloom import __version__
from spanloom.contract import Reader
from spanloom.errors import QueryError
from spanloom.model import TraceQuery, TraceSummary
from spanloom.server import query_params, text
from spanloom.server.responses import dumps, guarded, in_thread
from spanloom.server.waterfall import colours, stray_count, trace_view

LOOKBACKS: Final = (
    ("15m", "last 15 minutes"),
    ("1h", "last hour"),
    ("6h", "last 6 hours"),
    ("24h", "last 24 hours"),
    ("7d", "last 7 days"),
    ("all", "any time"),
)
DEFAULT_LOOKBACK: Final = "24h"
LIMITS: Final = (20, 50, 100, 500, 1000)
DEFAULT_LIMIT: Final = 50
MAX_LOG_LINES: Final = 5_000
"""Log lines one page carries; the API has them all."""

_WEB: Final = Path(__file__).parent / "web"
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def routes(reader: Reader, otlp_http_url: str) -> list[BaseRoute]:
    """The page over a store; `otlp_http_url` is shown to who has no traces yet."""
    page = _Page(reader, otlp_http_url)
    return [
        Route("/", guarded(page.traces, page.error)),
        Route("/search", guarded(page.search, page.error)),
        Route("/trace", guarded(page.jump, page.error)),
        Route("/trace/{trace_id}", guarded(page.trace, page.error)),
        Mount("/static", StaticFiles(directory=_WEB / "static")),
    ]


def list_query(params: QueryParams, now_ns: int) -> TraceQuery:
    """What the filters of the list ask for. Raises QueryError."""
    lookback = params.get("lookback") or DEFAULT_LOOKBACK
    tags = query_params.tags_from_logfmt(params.get("tags", ""))
    if query_params.boolean(params.get("errors", ""), "errors"):
        tags["error"] = "true"
    min_ns = _duration(params, "minDuration")
    max_ns = _duration(params, "maxDuration")
    query_params.check_durations(min_ns, max_ns)
    limit = params.get("limit") or str(DEFAULT_LIMIT)
    return TraceQuery(
        service=params.get("service") or None,
        operation=params.get("operation") or None,
        tags=tags,
        start_ns=None
        if lookback == "all"
        else now_ns - query_params.duration_ns(lookback, "lookback"),
        min_duration_ns=min_ns,
        max_duration_ns=max_ns,
        limit=query_params.integer(limit, "limit", minimum=1, maximum=query_params.MAX_LIMIT),
    )


class _Page:
    def __init__(self, reader: Reader, otlp_http_url: str) -> None:
        self._reader = reader
        self._otlp_http_url = otlp_http_url
        self._templates = _environment()

    def error(self, status: int, message: str) -> Response:
        return self._render("error.html", status, code=status, message=message)

    def _render(self, template: str, status: int = 200, **context: Any) -> Response:
        body = self._templates.get_template(template).render(context)
        return HTMLResponse(body, status, {"Cache-Control": "no-store"})

    async def traces(self, request: Request) -> Response:
        return await in_thread(self._traces, request.query_params)

    def _traces(self, params: QueryParams) -> Response:
        error, summaries = "", list[TraceSummary]()
        try:
            summaries = self._reader.find_summaries(list_query(params, time.time_ns()))
        except QueryError as wrong:
            error = str(wrong)
        services = self._reader.services()
        service = params.get("service", "")
        operations = self._reader.operations(service) if service else []
        return self._render(
            "traces.html",
            400 if error else 200,
            error=error,
            traces=summaries,
            longest=max((summary.duration_ns for summary in summaries), default=0),
            colours=colours(name for summary in summaries for name in summary.services),
            services=services,
            operations=sorted({operation.name for operation in operations}),
            filters=params,
            filtered=any(params.get(name) for name in _NARROWING),
            lookback=params.get("lookback") or DEFAULT_LOOKBACK,
            lookbacks=LOOKBACKS,
            limit=params.get("limit") or str(DEFAULT_LIMIT),
            limits=LIMITS,
            otlp_http_url=self._otlp_http_url,
            sample=_sample(),
        )

    async def search(self, request: Request) -> Response:
        query = request.url.query
        return RedirectResponse(f"/?{query}" if query else "/", 302)

    async def jump(self, request: Request) -> Response:
        wanted = request.query_params.get("id", "").strip().lower()
        traceparent = _TRACEPARENT.search(wanted)
        trace_id = query_params.trace_id(traceparent[1] if traceparent else wanted)
        return RedirectResponse(f"/trace/{trace_id}", 302)

    async def trace(self, request: Request) -> Response:
        trace_id = query_params.trace_id(request.path_params["trace_id"])
        return await in_thread(self._trace, trace_id, request.query_params.get("uiFind", ""))

    def _trace(self, trace_id: str, find: str) -> Response:
        trace = self._reader.get_trace(trace_id)
        if trace is None:
            return self._render("not_found.html", 404, trace_id=trace_id)
        # One more than shown, to know whether the page has to say that some are left out.
        logs = self._reader.trace_logs(trace_id, MAX_LOG_LINES + 1)
        view = trace_view(trace, logs[:MAX_LOG_LINES])
        view["find"] = find
        summary = trace.summary()
        palette = colours(summary.services)
        view["logsCut"] = len(logs) > MAX_LOG_LINES
        return self._render(
            "trace.html",
            trace=trace,
            summary=summary,
            # sampled, whatever the stored span says: who pastes it wants to see something
            traceparent=f"00-{trace_id}-{view['rows'][0]['id']}-01",
            colour=palette[summary.root_service],
            strays=stray_count(view),
            log_count=len(view["logs"]),
            data=_for_script_element(view),
        )


_NARROWING: Final = ("service", "operation", "tags", "minDuration", "maxDuration", "errors")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": text.duration,
        "count": text.count,
        "cost": text.cost,
        "one_line": text.one_line,
        "iso_time": text.iso_time,
        "readable_time": text.readable_time,
    }
    environment.globals["version"] = __version__
    return environment


def _for_script_element(value: object) -> str:
    """JSON that stays data inside `<script type="application/json">`, whatever it says."""
    # Only "<" can end the element or open a comment in it; the line separators end a line
    # in old JavaScript parsers.
    return (
        dumps(value)
        .decode()
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _sample() -> dict[str, str]:
    """Times for the curl of the empty state, so that the pasted span is a recent one."""
    now = time.time_ns()
    return {"start": str(now - 1_200_000_000), "end": str(now)}


def _duration(params: QueryParams, name: str) -> int | None:
    value = params.get(name)
    return query_params.duration_ns(value, name) if value else None
