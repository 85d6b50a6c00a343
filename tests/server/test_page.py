"""The page as text: filters, links, escaping, and what stands between it and other sites."""

import json
import re
import time
from typing import Any

import pytest

from spanloom.model import Resource
from spanloom.server.security import host_name, is_loopback
from tests.server.agent_trace import HOSTILE, START, Builder, agent_trace
from tests.server.running import Client

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def filled(shared: Client) -> Client:
    builder = agent_trace(TRACE_ID, time.time_ns() - 60_000_000_000)
    shared.send(spans=builder.spans, logs=builder.logs)
    return shared


def listed(server: Client, **params: Any) -> list[str]:
    text = server.query.get("/", params=params).text
    return re.findall(r'href="/trace/([0-9a-f]{32})"', text)


def test_a_store_without_traces_says_what_to_do(server: Client) -> None:
    text = server.query.get("/").text

    assert "No traces yet" in text
    assert f"curl -sS {server.addresses.otlp_http}/v1/traces" in text


def test_the_curl_of_the_empty_page_works(server: Client) -> None:
    text = server.query.get("/").text
    body = re.search(r"-d '(.*?)'</pre>", text)
    assert body
    assert server.post("/v1/traces", body[1], "application/json").status_code == 200
    assert listed(server) == ["4bf92f3577b34da6a3ce929d0e0e4736"]


def test_the_list_shows_a_trace_at_a_glance(filled: Client) -> None:
    text = filled.query.get("/").text

    for part in ("POST /chat", "2.84 s", "2,310", "248", "$0.0050", "offline-llm", "1 trace"):
        assert part in text


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"service": "agent"}, True),
        ({"service": "retrieval", "operation": "rerank 文档库"}, True),
        ({"tags": "http.route=/chat"}, True),
        ({"tags": 'gen_ai.retrieval.query.text="什么是 KV 缓存"'}, True),
        ({"minDuration": "2s", "maxDuration": "3s"}, True),
        ({"errors": "true"}, True),
        ({"lookback": "all", "limit": "1"}, True),
        ({"lookback": "15m"}, True),
        ({"errors": "true", "service": "retrieval"}, False),
        ({"minDuration": "3s"}, False),
        ({"tags": "http.route=/other"}, False),
    ],
)
def test_filters(filled: Client, params: dict[str, str], *, found: bool) -> None:
    assert listed(filled, **params) == ([TRACE_ID] if found else [])


def test_old_traces_are_offered_when_the_time_range_hides_them(server: Client) -> None:
    server.send(spans=agent_trace(TRACE_ID, START).spans)

    assert "Show traces of any time" in server.query.get("/").text
    assert listed(server, lookback="all") == [TRACE_ID]


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ({"minDuration": "<b>"}, "minDuration"),
        ({"tags": "nonsense"}, "key=value"),
        ({"lookback": "soon"}, "lookback"),
        ({"limit": "0"}, "limit"),
    ],
)
def test_a_wrong_filter_is_explained_beside_the_form(
    filled: Client, params: dict[str, str], part: str
) -> None:
    answer = filled.query.get("/", params=params)

    assert answer.status_code == 400
    alert = re.search(r'role="alert">(.*?)<', answer.text)
    assert alert
    assert part in alert[1]
    assert "<b>" not in answer.text.replace("<b>POST", "")


@pytest.mark.parametrize(
    "wanted", [TRACE_ID, TRACE_ID.upper(), f" 00-{TRACE_ID}-00f067aa0ba902b7-01 "]
)
def test_the_jump_box_takes_ids_and_traceparents(filled: Client, wanted: str) -> None:
    answer = filled.query.get("/trace", params={"id": wanted})

    assert (answer.status_code, answer.headers["location"]) == (302, f"/trace/{TRACE_ID}")


def test_jaegers_search_address_leads_to_the_list(filled: Client) -> None:
    answer = filled.query.get("/search", params={"service": "agent"})

    assert (answer.status_code, answer.headers["location"]) == (302, "/?service=agent")


def test_a_trace_that_is_not_there_is_404_with_reasons(server: Client) -> None:
    answer = server.query.get(f"/trace/{TRACE_ID}")

    assert answer.status_code == 404
    assert "not sampled" in answer.text
    assert server.query.get("/trace/nonsense").status_code == 400


def test_the_trace_page_carries_rows_and_log_lines(filled: Client) -> None:
    text = filled.query.get(f"/trace/{TRACE_ID}", params={"uiFind": "rerank"}).text

    view = embedded(text)
    assert (len(view["rows"]), len(view["logs"]), view["find"]) == (32, 9, "rerank")
    assert f"00-{TRACE_ID}-{1:016x}-01" in text
    # A caller elsewhere is the usual case and no reason for a warning.
    assert "was not received" not in text


def test_strays_are_announced(server: Client) -> None:
    builder = agent_trace(TRACE_ID)
    builder.span("lost branch", "d" * 16, at=5)
    server.send(spans=builder.spans)

    assert "The parent of 1 span was not received" in server.query.get(f"/trace/{TRACE_ID}").text


def embedded(text: str) -> Any:
    data = re.search(r'<script type="application/json" id="trace-data">(.*?)</script>', text)
    assert data
    return json.loads(data[1])


def test_hostile_names_never_become_markup(server: Client) -> None:
    """Service, span, tag, log: every text a sender chooses."""
    builder = Builder(TRACE_ID, time.time_ns())
    evil = '"><script>alert(1)</script></script><!--\u2028'
    resource = Resource({"service.name": evil})
    root = builder.span(evil, error=evil, resource=resource, spanloom__outcome=evil, **{evil: evil})
    builder.log(evil, root, at=1, **{evil: evil})
    server.send(spans=builder.spans, logs=builder.logs)

    pages = [
        server.query.get("/").text,
        server.query.get("/", params={"operation": evil, "tags": f"a={evil}"}).text,
        server.query.get(f"/trace/{TRACE_ID}", params={"uiFind": evil}).text,
        server.query.get(f"/trace/{evil}").text,
    ]

    for page in pages:
        scripts = re.findall(r"<script[^>]*>", page)
        assert all("src=" in tag or "application/json" in tag for tag in scripts)
        assert "<script>alert" not in page
        assert "<!--" not in page
    assert embedded(pages[2])["find"] == evil


def test_terminal_escapes_are_written_out(filled: Client) -> None:
    text = filled.query.get(f"/trace/{TRACE_ID}").text

    assert "\x1b" not in text
    assert HOSTILE not in text


def test_only_our_own_files_may_run(filled: Client) -> None:
    for path in ("/", f"/trace/{TRACE_ID}", f"/api/traces/{TRACE_ID}", "/static/app.css"):
        headers = filled.query.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe-inline" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_page_has_no_inline_code_and_nothing_from_elsewhere(filled: Client) -> None:
    for path in ("/", f"/trace/{TRACE_ID}", "/trace/" + "d" * 32):
        text = filled.query.get(path).text
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", text)
        references = re.findall(r'(?:src|href|action)="([^"]*)"', text)
        assert references
        assert all(reference.startswith("/") for reference in references)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:16686", "localhost.evil.example"])
def test_foreign_host_names_are_refused(filled: Client, host: str) -> None:
    """A page elsewhere cannot point its own name at this server and read the traces."""
    for path in ("/", f"/api/traces/{TRACE_ID}", "/metrics"):
        answer = filled.query.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "--allowed-host" in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:16686", "[::1]:16686"])
def test_loopback_names_are_welcome(filled: Client, host: str) -> None:
    assert filled.query.get("/", headers={"host": host}).status_code == 200


def test_host_headers_are_taken_apart() -> None:
    assert host_name("[::1]:16686") == "::1"
    assert host_name("Example.com:1") == "example.com"
    assert host_name("example.com") == "example.com"


def test_loopback_is_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com", "")))
