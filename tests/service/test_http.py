import json
import re
from collections.abc import AsyncIterator

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.service.conftest import Api, Start
from tests.service.loopback import FakeLLM, FakeRetrieval, Fault

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}


BAD_BODIES = [
    {},
    {"query": ""},
    {"query": "   \n"},
    {"query": "x" * 2001},
    {"query": None},
    {"query": 7},
    {"query": ["x"]},
    {"query": "x", "session_id": ""},
    {"query": "x", "session_id": "a" * 65},
    {"query": "x", "session_id": "under_score"},
    {"query": "x", "session_id": "../../etc"},
    {"query": "x", "session_id": "line\n"},
    {"query": "x", "session_id": None},
    {"query": "x", "user_id": "élise"},
    {"query": "x", "user_id": "a b"},
    {"query": "x", "user_id": "a\u0000"},
    {"query": "x", "user_id": 5},
    [],
    "text",
]


async def test_bad_input_is_422_and_is_not_echoed(api: Api, llm: FakeLLM) -> None:
    """What does not fit is named by its place, never repeated; nothing runs."""
    for body in BAD_BODIES:
        response = await api.client.post("/chat", json=body)

        assert response.status_code == 422, body
        answer = response.json()
        assert all(set(error) == {"type", "loc", "msg"} for error in answer["detail"])
        assert answer["trace_id"] == response.headers["x-trace-id"]
    assert llm.requests == []


async def test_a_body_that_is_no_json_is_a_clients_error(api: Api) -> None:
    """Broken JSON, broken UTF-8 and half a surrogate pair are the caller's mistakes."""
    for raw in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"query": "\\ud800"}',
        b'{"query": "x", "user_id": "\\ud800"}',
    ):
        response = await api.client.post(
            "/chat", content=raw, headers={"content-type": "application/json"}
        )

        assert response.status_code == 422, raw
        assert response.json()["detail"]


async def test_the_longest_and_the_shortest_query_are_taken(api: Api) -> None:
    """The limits are inclusive and count characters, not bytes."""
    for length in (1, 2000):
        response = await api.ask("存" * length, session_id="a" * 64, user_id="A-9")

        assert response.status_code == 200


async def test_a_large_body_is_refused_whether_or_not_it_says_so(start: Start) -> None:
    """413 by Content-Length, and for a chunked body as soon as the limit is passed."""
    api = await start(max_body_bytes=2048)
    large = json.dumps({"query": "x", "padding": "y" * 4096}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for position in range(0, len(large), 512):
            yield large[position : position + 512]

    headers = {"content-type": "application/json"}
    declared = await api.client.post("/chat", content=large, headers=headers)
    chunked = await api.client.post("/chat", content=chunks(), headers=headers)

    for response in (declared, chunked):
        assert response.status_code == 413
        assert "2048" in response.json()["detail"]
        assert response.json()["trace_id"] == response.headers["x-trace-id"]


async def test_a_chunked_body_within_the_limit_is_taken(api: Api) -> None:
    """No Content-Length is no reason to refuse."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"query": '
        yield b'"What is it?"}'

    response = await api.client.post(
        "/chat", content=chunks(), headers={"content-type": "application/json"}
    )

    assert response.status_code == 200


async def test_every_answer_says_its_trace_and_its_latency(
    start: Start, retrieval: FakeRetrieval
) -> None:
    """Errors, preflights and untraced endpoints too."""
    api = await start(cors_origins=["https://chat.example"], max_body_bytes=1024)
    preflight = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,traceparent",
    }
    client = api.client
    answers = {
        200: await api.ask(),
        404: await client.get("/nowhere"),
        405: await client.get("/chat"),
        413: await client.post("/chat", content=b"x" * 2000),
        422: await client.post("/chat", json={}),
    }
    retrieval.faults["/search"] = Fault(503)
    answers[503] = await api.ask()
    retrieval.faults.clear()
    retrieval.hits = [{}]
    answers[500] = await api.ask()
    more = [
        await client.options("/chat", headers=preflight),
        await client.get("/health"),
        await client.get("/ready"),
        await client.get("/metrics"),
        await client.get("/openapi.json"),
        await client.head("/health"),
    ]

    assert {status: answer.status_code for status, answer in answers.items()} == {
        status: status for status in answers
    }
    for answer in [*answers.values(), *more]:
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"]), answer.request.url
        assert re.fullmatch(r"\d+ms", answer.headers["x-request-latency"]), answer.request.url
    for status, answer in answers.items():
        if status != 200:
            assert answer.json()["trace_id"] == answer.headers["x-trace-id"]


async def test_a_callers_trace_id_comes_back_from_every_endpoint(api: Api) -> None:
    """Traced or not, the answer belongs to the caller's trace."""
    for path in ("/health", "/nowhere", "/chat"):
        response = await api.client.get(path, headers=CALLER)

        assert response.headers["x-trace-id"] == TRACE_ID, path


async def test_a_trusted_caller_gets_the_span_in_server_timing(api: Api) -> None:
    """A browser on this machine can join its own trace to the server's span."""
    response = await api.client.post("/chat", json={"query": "What is it?"}, headers=CALLER)

    timing = response.headers["server-timing"]
    assert re.fullmatch(rf"trace;desc=00-{TRACE_ID}-[0-9a-f]{{16}}-0[0-3]", timing)


async def test_a_callers_wish_not_to_be_sampled_is_honoured_and_said(
    api: Api, spans: InMemorySpanExporter
) -> None:
    """Nothing is recorded, the answer still has the trace id, and its flags say "not sampled"."""
    unsampled = {"traceparent": CALLER["traceparent"][:-2] + "00"}

    response = await api.client.post("/chat", json={"query": "What is it?"}, headers=unsampled)

    assert response.json()["trace_id"] == TRACE_ID
    assert response.headers["server-timing"].endswith("-00")
    assert spans.get_finished_spans() == ()


async def test_an_answer_without_a_span_keeps_the_random_bit(api: Api) -> None:
    """Untraced paths hand on what the caller said of its id; a new id is random and says so."""
    for received, sent in (("00", "00"), ("01", "00"), ("03", "02")):
        caller = {"traceparent": CALLER["traceparent"][:-2] + received}
        response = await api.client.get("/health", headers=caller)

        assert response.headers["server-timing"].endswith(f"-{sent}")
    assert (await api.client.get("/health")).headers["server-timing"].endswith("-02")


async def test_readiness_checks_leave_no_spans(api: Api, spans: InMemorySpanExporter) -> None:
    """Polled endpoints would drown the traces: neither they nor their calls are recorded."""
    for path in ("/health", "/ready", "/metrics"):
        await api.client.get(path)

    assert spans.get_finished_spans() == ()


async def test_only_configured_origins_may_read(start: Start) -> None:
    """CORS: the origin that was named, and it may read our two headers; no other."""
    api = await start(cors_origins=["https://chat.example"])
    friend = await api.client.get("/nowhere", headers={"origin": "https://chat.example"})
    stranger = await api.client.get("/nowhere", headers={"origin": "https://evil.example"})

    assert friend.headers["access-control-allow-origin"] == "https://chat.example"
    exposed = friend.headers["access-control-expose-headers"].lower()
    assert "x-trace-id" in exposed
    assert "x-request-latency" in exposed
    assert "access-control-allow-origin" not in stranger.headers


async def test_without_configured_origins_no_browser_may_read(api: Api) -> None:
    """CORS is off by default."""
    response = await api.client.get("/health", headers={"origin": "https://chat.example"})

    assert "access-control-allow-origin" not in response.headers


async def test_health_asks_nobody_else(api: Api, llm: FakeLLM, retrieval: FakeRetrieval) -> None:
    """A live process is live though everything else is down."""
    retrieval.faults["/health"] = Fault(500)
    llm.faults["models"] = Fault(500)

    response = await api.client.get("/health")

    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "ok"
    assert body["version"]
    assert body["uptime_seconds"] >= 0
    assert body["revision"] is None


async def test_health_tells_the_commit_of_the_image(start: Start) -> None:
    """What a deploy looks for before it calls a release good."""
    api = await start(revision="0123abc")

    health = await api.client.get("/health")

    assert health.json()["revision"] == "0123abc"


async def test_ready_names_the_dependency_that_is_not(
    api: Api, llm: FakeLLM, retrieval: FakeRetrieval
) -> None:
    """All well is 200; otherwise 503 and who it is."""
    well = await api.client.get("/ready")
    retrieval.faults["/health"] = Fault(500)
    no_retrieval = await api.client.get("/ready")
    retrieval.faults.clear()
    llm.faults["models"] = Fault(500)
    no_llm = await api.client.get("/ready")

    assert well.status_code == 200
    assert all(state["ok"] for state in well.json()["dependencies"].values())
    assert set(well.json()["dependencies"]) == {"retrieval", "llm", "sessions"}
    assert no_retrieval.status_code == no_llm.status_code == 503
    assert "retrieval" in no_retrieval.json()["detail"]
    assert "llm" in no_llm.json()["detail"]
    assert int(no_llm.headers["retry-after"]) > 0


async def test_metrics_count_requests_by_endpoint_and_status(api: Api) -> None:
    """Prometheus text by default, OpenMetrics when asked for."""
    await api.ask()
    await api.client.post("/chat", json={})
    await api.client.post("/chat/stream", json={"query": "What is it?"})

    plain = await api.client.get("/metrics")
    modern = await api.client.get(
        "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )

    assert plain.headers["content-type"].startswith("text/plain")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    for status, endpoint in (("200", "/chat"), ("422", "/chat"), ("200", "/chat/stream")):
        found = [
            line
            for line in plain.text.splitlines()
            if line.startswith("agent_requests_total{")
            and f'status="{status}"' in line
            and f'endpoint="{endpoint}"' in line
        ]
        assert found, (status, endpoint)
        assert float(found[0].rpartition(" ")[2]) >= 1
    assert modern.text.endswith("# EOF\n")
