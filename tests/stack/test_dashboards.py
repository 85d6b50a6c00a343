"""Every query of every panel, against the real Prometheus and Loki with real traffic in them."""

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from string import Template
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import yaml

from tests.cli.reaping import Reap
from tests.stack.faults import Faulty, faulty_service
from tests.stack.programs import ROOT, Stack, binary, collector
from tests.stack.sending import spans
from tests.stack.waiting import data, eventually

FILES = sorted((ROOT / "grafana/dashboards").glob("*.json"))
WAVES = 3
# What Grafana and its variables would put in; windows fit the minute of traffic.
FILLED_IN = {
    "agent": ".+",
    "service": ".+",
    "baseline": "5m",
    "__rate_interval": "1m",
    "__range": "5m",
    "__auto": "1m",
}
# Several waits of a minute in one test, and the start of everything in the first.
pytestmark = pytest.mark.timeout(420)


@dataclass(frozen=True)
class Query:
    """One target of one panel."""

    board: str
    panel: str
    target: dict[str, Any]

    @property
    def expr(self) -> str:
        return Template(self.target["expr"]).substitute(FILLED_IN)

    @property
    def source(self) -> str:
        return str(self.target["datasource"]["uid"])

    def __str__(self) -> str:
        return f"{self.board.removeprefix('spanloom-')}: {self.panel} ({self.target['refId']})"


def queries() -> list[Query]:
    return [
        Query(file.stem, panel["title"], target)
        for file in FILES
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


@dataclass(frozen=True)
class Live:
    """The stack with traffic in it."""

    stack: Stack
    faulty: Faulty
    since: float

    def prometheus(self, path: str, **params: str | float) -> Any:
        return data(f"{self.stack.prometheus.url}/api/v1/{path}", **params)

    def loki(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = data(
            f"{self.stack.loki.url}/loki/api/v1/query_range",
            query=expr, start=int(self.since * 1e9), end=int(time.time() * 1e9), step="2s",
        )["result"]  # fmt: skip
        return found

    def run(self, query: Query) -> list[dict[str, Any]]:
        """The series (or streams) a panel would draw now."""
        if query.source == "loki":
            return self.loki(query.expr)
        if query.target.get("instant"):
            found = self.prometheus("query", query=query.expr)["result"]
        else:
            found = self.prometheus(
                "query_range", query=query.expr, start=self.since, end=time.time(), step=2
            )["result"]
        return [series for series in found if any(map(math.isfinite, values(series)))]


def values(series: dict[str, Any]) -> list[float]:
    return [float(value) for _, value in series.get("values") or [series["value"]]]


@pytest.fixture(scope="module")
def live(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Traffic with everything in it that the dashboards are there to show."""
    folder = tmp_path_factory.mktemp("faulty")
    gateway = collector(
        folder, stack.jaeger, stack.prometheus,
        config=ROOT / "deploy/collector/gateway.yaml", name="gateway", TAIL_DECISION_WAIT="3s",
    )  # fmt: skip
    with (
        gateway,
        Reap(folder / "reap", stack.collector.http) as reap,
        faulty_service(folder, stack.collector.http) as faulty,
    ):
        stack.prometheus.scrape("spanloom-reap", reap.admin.removeprefix("http://"))
        stack.prometheus.scrape("otel-collector", httpx2.URL(gateway.metrics_url).netloc.decode())
        address = faulty.service.api.removeprefix("http://")
        stack.prometheus.scrape("agent-api", address, file="agent-api.yml")
        started = time.time()
        for _ in range(WAVES):
            faulty.good()
            faulty.refused()
            spans(gateway)
            faulty.timed_out()  # lasts for three scrapes of what this wave has counted
        yield Live(stack, faulty, started)


@pytest.mark.parametrize("query", queries(), ids=str)
def test_a_query_is_well_formed(query: Query) -> None:
    """By the parsers of the programs that will run it."""
    if query.source == "loki":
        command = [str(binary("logcli")), "fmt"]
    else:
        command = [str(binary("promtool")), "--experimental", "promql", "format", query.expr]
    done = subprocess.run(
        command, input=query.expr, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{query.expr}\n{done.stderr}"


@pytest.mark.parametrize("query", queries(), ids=str)
def test_a_panel_shows_something(live: Live, query: Query) -> None:
    eventually(lambda: live.run(query), query.expr)


@pytest.mark.parametrize(
    "query", [query for query in queries() if query.target.get("exemplar")], ids=str
)
def test_a_panel_with_exemplars_has_some_and_they_open_in_jaeger(live: Live, query: Query) -> None:
    def trace_ids() -> list[str]:
        found = live.prometheus(
            "query_exemplars", query=query.expr, start=live.since, end=time.time()
        )
        return [each["labels"]["trace_id"] for series in found for each in series["exemplars"]]

    ids = eventually(trace_ids, f"no exemplar for {query.expr}")
    url = f"{live.stack.jaeger.url}/api/traces/{ids[0]}"
    eventually(lambda: httpx2.get(url, timeout=30, trust_env=False).status_code == 200, url)


def test_the_faults_are_on_the_panels_that_are_there_for_them(live: Live) -> None:
    """Not just series: the tool that failed, the refusals, the timeouts, by their names."""

    def shown(expr: str) -> list[dict[str, Any]]:
        end = time.time()
        found = live.prometheus("query_range", query=expr, start=live.since, end=end, step=2)
        return [series for series in found["result"] if max(values(series)) > 0]

    for expr in (
        'sum by (tool) (rate(agent_tool_calls_total{tool="calculator", status="error"}[1m]))',
        'sum by (model) (rate(agent_llm_calls_total{status="rate_limit"}[1m]))',
        'sum by (status) (rate(agent_requests_total{status="503"}[1m]))',
        'sum by (status) (rate(agent_requests_total{status="504"}[1m]))',
        'sum(rate(traces_span_metrics_calls_total{spanloom_outcome="timeout"}[1m]))',
        "sum by (node) (rate(agent_step_cost_usd_total[1m]))",
        "job:agent_requests:error_ratio5m",
        "job_model:agent_llm_calls:rate_limit_ratio5m",
    ):
        eventually(lambda expr=expr: shown(expr), expr)


def test_a_model_that_hangs_is_the_part_of_the_request_time_that_grew(live: Live) -> None:
    """Over all traffic: the decomposition of Timeouts points at the LLM, which was made to hang."""

    def seconds_of(query: Query) -> float:
        expr = Template(query.target["expr"]).substitute(FILLED_IN | {"__rate_interval": "5m"})
        found = eventually(lambda: live.prometheus("query", query=expr)["result"], expr)
        return values(found[0])[0]

    parts = {
        query.target["legendFormat"]: seconds_of(query)
        for query in queries()
        if query.panel == "Seconds of one request, by part"
    }
    assert parts.keys() == {"LLM", "retrieval", "rerank", "tool", "queue and rest"}
    assert max(parts, key=lambda part: parts[part]) == "LLM", parts


# --- what leads from one signal to the other -----------------------------------------------------


def source(uid: str) -> dict[str, Any]:
    text = (ROOT / "grafana/provisioning/datasources/spanloom.yaml").read_text(encoding="utf-8")
    return next(
        each["jsonData"] for each in yaml.safe_load(text)["datasources"] if each["uid"] == uid
    )


def tags(mapping: list[dict[str, str]], attributes: dict[str, str]) -> str:
    """`__tags`: the attributes of a span that are labels elsewhere."""
    return ", ".join(
        f'{tag["value"]}="{attributes[tag["key"]]}"' for tag in mapping if tag["key"] in attributes
    )


def attributes_of(live: Live, trace_id: str) -> list[dict[str, str]]:
    """Attributes of each span of a trace, its service's name among them."""
    url = f"{live.stack.jaeger.url}/api/traces/{trace_id}"
    answer = httpx2.get(url, timeout=30, trust_env=False)
    if answer.status_code != 200:
        return []
    (trace,) = answer.json()["data"]
    services = {key: process["serviceName"] for key, process in trace["processes"].items()}
    return [
        {tag["key"]: str(tag["value"]) for tag in span["tags"]}
        | {"service.name": services[span["processID"]], "trace": trace["traceID"]}
        for span in trace["spans"]
    ]


def one_span(live: Live, question: str, key: str, value: str) -> dict[str, str]:
    """The span of a new trace that has an attribute; the trace may arrive in parts."""
    trace_id, _ = live.faulty.service.ask(question)
    return eventually(
        lambda: next(
            (span for span in attributes_of(live, trace_id) if span.get(key) == value), {}
        ),
        f"{key}={value} of {trace_id} in Jaeger",
    )


def test_a_span_finds_its_log_lines_and_they_find_its_trace(live: Live) -> None:
    span = one_span(live, "What is 3+4?", "gen_ai.operation.name", "execute_tool")
    link = source("jaeger")["tracesToLogsV2"]
    query = (
        link["query"]
        .replace("$$", "$")
        .replace("${__tags}", tags(link["tags"], span))
        .replace("${__trace.traceId}", span["trace"])
    )
    streams = eventually(lambda: live.loki(query), query)
    (field,) = source("loki")["derivedFields"]
    for stream in streams:
        assert stream["stream"][field["matcherRegex"]] == span["trace"]
        assert stream["stream"]["service_name"] == "agent-api"


@pytest.mark.parametrize("number", range(3))
def test_a_span_finds_the_series_of_its_like(live: Live, number: int) -> None:
    span = one_span(live, "What is 5/0?", "gen_ai.tool.name", "calculator")
    link = source("jaeger")["tracesToMetrics"]
    query = link["queries"][number]["query"].replace("$$__tags", tags(link["tags"], span))
    assert 'gen_ai_tool_name="calculator"' in query
    eventually(lambda: live.prometheus("query", query=query)["result"], query)


def test_the_variables_have_values(live: Live) -> None:
    found = {}
    for variable in json.loads(FILES[0].read_text(encoding="utf-8"))["templating"]["list"]:
        asked = variable["query"]["query"]
        metric, label = re.fullmatch(r"label_values\((\w+),(\w+)\)", asked).groups()  # type: ignore[union-attr]
        found[variable["name"]] = set(
            live.prometheus(f"label/{label}/values", **{"match[]": metric})
        )
    assert "agent-api" in found["agent"]
    assert found["service"] >= {"agent-api", "retrieval", "offline-llm"}


def searches() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{file.stem}: {panel['title']}", json.loads(panes)["traces"]["queries"][0])
        for file in FILES
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]
        for link in panel.get("links", [])
        for panes in parse_qs(urlsplit(link["url"]).query)["panes"]
    ]


@pytest.mark.parametrize(("title", "search"), searches(), ids=lambda each: str(each)[:40])
def test_a_panels_search_in_jaeger_finds_traces(
    live: Live, title: str, search: dict[str, Any]
) -> None:
    """As Grafana translates it: `tags` from logfmt to JSON."""
    params: dict[str, str | int] = {
        "service": "agent-api",
        "limit": search["limit"],
        "start": int(live.since * 1e6),
        "end": int((time.time() + 60) * 1e6),
    }
    if "tags" in search:
        params["tags"] = json.dumps(dict(pair.split("=", 1) for pair in search["tags"].split()))
    if "minDuration" in search:
        assert search["minDuration"] == "10s"  # a request that hangs takes longer
        params["minDuration"] = search["minDuration"]
    url = f"{live.stack.jaeger.url}/api/traces"
    eventually(lambda: data(url, **params), title)
