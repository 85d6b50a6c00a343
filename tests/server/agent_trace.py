"""A trace as the agent service sends it: three services, LLM spans, an error, Chinese text."""

from spanloom.model import (
    LogEvent,
    Resource,
    Scope,
    Span,
    SpanEvent,
    SpanKind,
    SpanLink,
    Status,
    StatusCode,
    Trace,
)

MS = 1_000_000
START = 1_700_000_000_000_000_000

AGENT = Resource({"service.name": "agent", "service.version": "0.1.0", "host.name": "box"})
RETRIEVAL = Resource({"service.name": "retrieval", "service.instance.id": "r-1"})
LLM = Resource({"service.name": "offline-llm"})
SCOPE = Scope("spanloom.telemetry", "0.1.0")

HOSTILE = "<script>alert(1)</script>\x1b[31mred\x1b[0m"


class Builder:
    """Adds spans to one trace; ids count up, times are milliseconds after `start`."""

    def __init__(self, trace_id: str, start: int = START) -> None:
        self.trace_id = trace_id
        self.start = start
        self.spans: list[Span] = []
        self.logs: list[LogEvent] = []

    def span(
        self,
        name: str,
        parent: str = "",
        *,
        at: float = 0,
        lasts: float = 1,
        kind: SpanKind = SpanKind.INTERNAL,
        resource: Resource = AGENT,
        error: str | None = None,
        events: tuple[SpanEvent, ...] = (),
        links: tuple[SpanLink, ...] = (),
        **attributes: object,
    ) -> str:
        """Add a span (`__` in a keyword stands for a dot) and return its id."""
        span_id = f"{len(self.spans) + 1:016x}"
        begin = self.start + round(at * MS)
        self.spans.append(
            Span(
                trace_id=self.trace_id,
                span_id=span_id,
                name=name,
                start_time_unix_nano=begin,
                end_time_unix_nano=begin + round(lasts * MS),
                parent_span_id=parent,
                flags=0x101,
                kind=kind,
                attributes={key.replace("__", "."): value for key, value in attributes.items()},
                events=events,
                links=links,
                status=Status() if error is None else Status(StatusCode.ERROR, error),
                resource=resource,
                scope=SCOPE,
            )
        )
        return span_id

    def log(
        self, body: str, span_id: str, *, at: float, severity: int = 9, **attributes: object
    ) -> None:
        """Add a log line."""
        level = {5: "debug", 9: "info", 13: "warning", 17: "error"}[severity]
        moment = self.start + round(at * MS)
        self.logs.append(
            LogEvent(
                time_unix_nano=moment,
                observed_time_unix_nano=moment,
                severity_number=severity,
                severity_text=level,
                body=body,
                attributes=attributes,
                flags=1,
                trace_id=self.trace_id,
                span_id=span_id,
                resource=AGENT,
                scope=Scope("service.agent"),
            )
        )

    def trace(self) -> Trace:
        """The trace as a store returns it."""
        ordered = sorted(self.spans, key=lambda span: span.start_time_unix_nano)
        return Trace(self.trace_id, tuple(ordered))


def agent_trace(trace_id: str, start: int = START) -> Builder:
    """POST /chat ▸ workflow ▸ route, 3 × retrieve, rerank, tools, generate, reflect."""
    b = Builder(trace_id, start)
    node = {"gen_ai__operation__name": "invoke_node", "spanloom__outcome": "ok"}
    root = b.span(
        "POST /chat",
        "00f067aa0ba902b7",
        lasts=2840,
        kind=SpanKind.SERVER,
        http__request__method="POST",
        http__route="/chat",
        http__response__status_code=200,
        url__path="/chat",
    )
    b.log("chat_request", root, at=2, query_len=18, session_id="default")
    workflow = b.span(
        "invoke_workflow agent",
        root,
        at=6,
        lasts=2825,
        gen_ai__operation__name="invoke_workflow",
        gen_ai__workflow__name="agent",
        spanloom__outcome="ok",
        spanloom__usage__input_tokens=2310,
        spanloom__usage__output_tokens=248,
    )
    route = b.span("invoke_node route", workflow, at=8, lasts=190, **node, langgraph__step=1)
    _chat(b, route, at=12, lasts=180, model="offline-small", tokens=(118, 22))
    b.log("routed", route, at=197, difficulty="moderate", sub_queries=3)
    for number, query in enumerate(("什么是 KV 缓存", "KV cache eviction", "paged attention")):
        at = 205 + number * 4
        fetch = b.span(
            "invoke_node retrieve", workflow, at=at, lasts=160, **node, langgraph__step=2
        )
        call = b.span(
            "POST",
            fetch,
            at=at + 2,
            lasts=150,
            kind=SpanKind.CLIENT,
            http__request__method="POST",
            url__full="http://127.0.0.1:8001/search",
        )
        search = b.span(
            "POST /search",
            call,
            at=at + 9,
            lasts=132,
            kind=SpanKind.SERVER,
            resource=RETRIEVAL,
            http__request__method="POST",
            http__route="/search",
        )
        b.span(
            "retrieval 文档库",
            search,
            at=at + 12,
            lasts=120,
            kind=SpanKind.CLIENT,
            resource=RETRIEVAL,
            gen_ai__operation__name="retrieval",
            gen_ai__data_source__id="文档库",
            gen_ai__retrieval__top_k=6,
            gen_ai__retrieval__query__text=query,
            spanloom__result__count=6,
        )
        b.log("retrieved", fetch, at=at + 158, hits=6, query=query)
    rerank = b.span("invoke_node rerank", workflow, at=385, lasts=70, **node, langgraph__step=3)
    b.span(
        "rerank 文档库",
        rerank,
        at=390,
        lasts=60,
        kind=SpanKind.CLIENT,
        resource=RETRIEVAL,
        gen_ai__operation__name="rerank",
        spanloom__result__count=4,
    )
    tools = b.span("invoke_node tools", workflow, at=460, lasts=620, **node, langgraph__step=4)
    _chat(b, tools, at=463, lasts=240, model="offline-medium", tokens=(640, 31))
    stack = 'Traceback (most recent call last):\n  File "tools.py", line 41\nZeroDivisionError'
    failed = b.span(
        "execute_tool calculator",
        tools,
        at=706,
        lasts=24,
        error="division by zero",
        gen_ai__operation__name="execute_tool",
        gen_ai__tool__name="calculator",
        error__type="ZeroDivisionError",
        spanloom__outcome="error",
        events=(
            SpanEvent(
                start + 728 * MS,
                "exception",
                {
                    "exception.type": "ZeroDivisionError",
                    "exception.message": "division by zero",
                    "exception.stacktrace": stack,
                },
            ),
        ),
    )
    b.log("tool_failed", failed, at=729, severity=17, tool="calculator", error="division by zero")
    b.span(
        "execute_tool get_current_time",
        tools,
        at=733,
        lasts=3,
        gen_ai__operation__name="execute_tool",
        gen_ai__tool__name="get_current_time",
        spanloom__outcome="ok",
    )
    b.span(
        f"execute_tool {HOSTILE}",
        tools,
        at=738,
        lasts=310,
        error=f"timed out: {HOSTILE}",
        gen_ai__operation__name="execute_tool",
        gen_ai__tool__name=HOSTILE,
        spanloom__outcome="timeout",
        **{"</script><img src=x onerror=alert(2)>": "</script><script>alert(3)</script>"},
    )
    b.log(f"late tool {HOSTILE}", tools, at=1049, severity=13, note="</script>")
    generate = b.span(
        "invoke_node generate", workflow, at=1085, lasts=1320, **node, langgraph__step=5
    )
    _chat(b, generate, at=1092, lasts=1300, model="offline-large", tokens=(1240, 164), cost=0.00412)
    b.log("回答已生成", generate, at=2400, tokens=164, language="zh")
    reflect = b.span("invoke_node reflect", workflow, at=2410, lasts=410, **node, langgraph__step=6)
    _chat(b, reflect, at=2414, lasts=395, model="offline-small", tokens=(312, 31))
    b.span(
        "waiting for session lock",
        workflow,
        at=2822,
        lasts=8,
        links=(SpanLink("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"),),
        spanloom__outcome="interrupted",
    )
    b.log("chat_response", root, at=2838, latency_ms=2838, tokens_used=2558)
    return b


def _chat(
    b: Builder,
    parent: str,
    *,
    at: float,
    lasts: float,
    model: str,
    tokens: tuple[int, int],
    cost: float = 0.0003,
) -> None:
    call = b.span(
        f"chat {model}",
        parent,
        at=at,
        lasts=lasts,
        kind=SpanKind.CLIENT,
        gen_ai__operation__name="chat",
        gen_ai__provider__name="openai",
        gen_ai__request__model=model,
        gen_ai__response__finish_reasons=("stop",),
        gen_ai__usage__input_tokens=tokens[0],
        gen_ai__usage__output_tokens=tokens[1],
        gen_ai__response__time_to_first_chunk=0.021,
        spanloom__cost__usd=cost,
        spanloom__outcome="ok",
        server__address="127.0.0.1",
        server__port=8002,
        events=(SpanEvent(b.start + round((at + 21) * MS), "first chunk"),),
    )
    b.span(
        "POST /v1/chat/completions",
        call,
        at=at + 4,
        lasts=lasts - 8,
        kind=SpanKind.SERVER,
        resource=LLM,
        http__request__method="POST",
        http__route="/v1/chat/completions",
    )
