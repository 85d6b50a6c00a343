"""Grafana's files as text: what Grafana itself would refuse or show empty, it cannot say here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.boards import __main__ as boards
from spanloom import ports, semconv

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "grafana/dashboards").glob("*.json"))
BUILT_IN = {"__rate_interval", "__range", "__auto", "__from", "__to"}
UNITS = {value for name, value in vars(units).items() if isinstance(value, str) and name[0] != "_"}
CLIENT_LIBRARY_SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def dashboard(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def environment() -> dict[str, str]:
    text = (ROOT / "grafana/grafana.env").read_text(encoding="utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if line and line[0] != "#")


def provisioned(name: str) -> Any:
    """A provisioning file as Grafana reads it: variables expanded, `$$` a dollar.

    A `$` that is neither is an error here; Grafana would replace it by nothing.
    """
    text = (ROOT / "grafana/provisioning" / name / "spanloom.yaml").read_text(encoding="utf-8")
    uncommented = "\n".join(line for line in text.splitlines() if line.strip()[:1] != "#")
    return yaml.safe_load(Template(uncommented).substitute(environment()))


def sources() -> dict[str, dict[str, Any]]:
    return {source["uid"]: source for source in provisioned("datasources")["datasources"]}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for file in FILES:
        for panel in panels(dashboard(file)):
            for target in panel["targets"]:
                yield file.stem, panel, target


# --- the generator --------------------------------------------------------------------------------


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grafana.boards", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(FILES) == 5


def test_a_dashboard_that_was_changed_by_hand_is_noticed_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(boards, "DASHBOARDS", tmp_path)
    for file in FILES:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = tmp_path / "spanloom-agent.json"
    changed.write_text(changed.read_text(encoding="utf-8").replace("p95", "p96"), encoding="utf-8")
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(sys, "argv", ["boards", "--check"])
    assert boards.main() == 1
    said = capsys.readouterr().err
    assert "spanloom-agent.json" in said
    assert "old.json" in said
    assert "spanloom-cost.json" not in said

    monkeypatch.setattr(sys, "argv", ["boards"])
    assert boards.main() == 0
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in FILES}
    assert changed.read_bytes() == (ROOT / "grafana/dashboards/spanloom-agent.json").read_bytes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_survives_the_way_through_the_types_of_the_sdk(file: Path) -> None:
    loaded = dashboard(file)
    again = json.loads(json.dumps(Dashboard.from_json(loaded), cls=JSONEncoder))
    assert again == loaded


# --- dashboards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_is_complete(file: Path) -> None:
    board = dashboard(file)
    assert board["uid"] == file.stem
    assert len(board["uid"]) <= 40
    assert board["schemaVersion"] >= 36
    assert board["tags"] == ["spanloom"]
    (link,) = board["links"]
    assert (link["type"], link["tags"]) == ("dashboards", board["tags"])
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in panels(board):
        assert panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        assert isinstance(panel["options"], dict), panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references))
        assert references, panel["title"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_panel_lies_on_another_or_beside_the_page(file: Path) -> None:
    places = [panel["gridPos"] for panel in dashboard(file)["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_panels_and_queries_name_data_sources_that_are_provisioned() -> None:
    kinds = {uid: source["type"] for uid, source in sources().items()}
    for name, panel, target in targets():
        where = f"{name}: {panel['title']}"
        assert kinds[panel["datasource"]["uid"]] == panel["datasource"]["type"], where
        assert target["datasource"] == panel["datasource"], where
    for file in FILES:
        board = dashboard(file)
        for source in (*board["templating"]["list"], *board["annotations"]["list"]):
            if "datasource" in source:
                assert kinds[source["datasource"]["uid"]] == source["datasource"]["type"]


def test_variables_that_are_asked_for_exist() -> None:
    for name, panel, target in targets():
        known = {
            v["name"]
            for v in dashboard(ROOT / f"grafana/dashboards/{name}.json")["templating"]["list"]
        }
        asked = set(re.findall(r"\$\{?(\w+)", target["expr"]))
        assert asked <= known | BUILT_IN, panel["title"]


def test_units_are_grafanas() -> None:
    shown = {
        panel["fieldConfig"]["defaults"]["unit"]
        for file in FILES
        for panel in panels(dashboard(file))
        if panel["type"] not in {"logs", "heatmap"}
    }
    assert shown <= UNITS
    assert {"s", "percentunit", "currencyUSD", "bytes", "reqps"} <= shown


def test_every_latency_panel_has_exemplars_and_none_asks_for_those_of_a_recorded_series() -> None:
    """Exemplars are found by the selector of a query; a recorded series has none."""
    with_exemplars = 0
    for name, panel, target in targets():
        expr = target["expr"]
        where = f"{name}: {panel['title']}"
        if panel["type"] == "stat":
            assert not target["exemplar"], where
        elif "_bucket{" in expr or panel["type"] == "heatmap":
            assert target["exemplar"] is True, where
        if target.get("exemplar"):
            with_exemplars += 1
            assert not re.search(r"\w+:\w+", expr), where
            assert target["range"] is True, where
    assert with_exemplars >= 20
    (heatmap,) = (
        panel
        for panel in panels(dashboard(ROOT / "grafana/dashboards/spanloom-service.json"))
        if panel["type"] == "heatmap"
    )
    assert heatmap["targets"][0]["format"] == "heatmap"


def test_queries_ask_for_metrics_that_the_code_and_the_rules_have() -> None:
    ours = {value for name, value in vars(semconv).items() if name.startswith("PROM_")}
    recorded = {
        rule["record"]
        for file in (ROOT / "prometheus/rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    for name, panel, target in targets():
        expr = re.sub(r'"[^"]*"', '""', target["expr"])
        where = f"{name}: {panel['title']}"
        assert set(re.findall(r"\w+:\w+:\w+", expr)) <= recorded, where
        for metric in re.findall(
            r"(?<![\w:])(?:agent|spanloom_telemetry)_\w+(?=\{|\[|\)| |$)", expr
        ):
            if target["datasource"]["uid"] == "prometheus":
                assert CLIENT_LIBRARY_SUFFIX.sub("", metric) in ours, where


def test_labels_of_spans_are_dimensions_of_the_collectors_red_series() -> None:
    text = (ROOT / "otel-collector.yaml").read_text(encoding="utf-8")
    connector = yaml.safe_load(text)["connectors"]["span_metrics"]
    dimensions = {each["name"].replace(".", "_") for each in connector["dimensions"]}
    known = dimensions | {"service_name", "span_name", "span_kind", "status_code", "le"}
    known |= {"otel_metric_overflow"}
    asked = set()
    for _, panel, target in targets():
        for selector in re.findall(r"traces_span_metrics_\w+\{([^}]*)\}", target["expr"]):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels <= known, panel["title"]
            asked |= labels
    assert {"gen_ai_operation_name", "spanloom_outcome"} <= asked


def test_the_dashboards_that_alerts_point_to_exist() -> None:
    uids = {file.stem for file in FILES}
    pointed = {
        rule["annotations"]["dashboard"]
        for file in (ROOT / "prometheus/rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert pointed == {f"/d/{uid}" for uid in uids}


def test_the_documentation_names_every_dashboard() -> None:
    text = (ROOT / "docs/dashboards.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(spanloom-\w+)`", text)) == {file.stem for file in FILES}


def test_a_link_to_jaeger_has_one_service_in_it() -> None:
    """Jaeger knows no patterns: with several agents at once the search would find nothing."""
    for file in FILES:
        variables = {v["name"]: v for v in dashboard(file)["templating"]["list"]}
        assert not variables["agent"].get("multi")
        assert not variables["agent"].get("includeAll")
        assert variables["service"]["allValue"] == ".+"


def test_the_limits_on_show_are_those_of_the_alerts() -> None:
    lines = 0
    for _, panel, target in targets():
        if target.get("legendFormat") == "limit":
            lines += 1
            assert ":limit:" in target["expr"]
            assert any(
                o["matcher"]["options"] == "limit" for o in panel["fieldConfig"]["overrides"]
            )
    assert lines >= 7


def test_links_of_panels_lead_to_a_search_in_jaeger() -> None:
    found = 0
    for file in FILES:
        for panel in panels(dashboard(file)):
            for link in panel.get("links", []):
                found += 1
                (panes,) = parse_qs(urlsplit(link["url"]).query, strict_parsing=True)["panes"]
                pane = json.loads(panes)["traces"]
                assert pane["datasource"] in sources()
                assert pane["range"] == {"from": "${__from}", "to": "${__to}"}
                (search,) = pane["queries"]
                assert search["queryType"] == "search"
                assert search["service"] == "${agent}"
                assert {"tags", "minDuration"} & search.keys()
    assert found >= 5


# --- provisioning ---------------------------------------------------------------------------------


def test_addresses_come_from_the_environment_and_are_the_default_ports() -> None:
    here = "http://127.0.0.1"
    assert {uid: source["url"] for uid, source in sources().items()} == {
        "prometheus": f"{here}:{ports.PROMETHEUS}",
        "jaeger": f"{here}:{ports.QUERY_HTTP}",
        "loki": f"{here}:{ports.LOKI}",
    }
    assert environment()["GF_SERVER_HTTP_PORT"] == str(ports.GRAFANA)
    (provider,) = provisioned("dashboards")["providers"]
    assert (ROOT / provider["options"]["path"]) == FILES[0].parent
    assert (ROOT / environment()["GF_PATHS_PROVISIONING"] / "datasources").is_dir()


def test_jaegers_page_links_to_the_data_sources_by_their_uids() -> None:
    text = (ROOT / "jaeger/ui.json").read_text(encoding="utf-8")
    uids = set(re.findall(r"datasource%22%3A%22(\w+)%22", text))
    assert uids
    assert uids <= sources().keys()


def test_jaegers_page_links_to_dashboards_that_exist_around_the_time_of_the_trace() -> None:
    patterns = json.loads((ROOT / "jaeger/ui.json").read_text(encoding="utf-8"))["linkPatterns"]
    found = set()
    for pattern in patterns:
        if match := re.search(r"/d/([\w-]+)\?from=#\{(\S+) .*&to=#\{(\S+) ", pattern["url"]):
            uid, start, end = match.groups()
            prefix = "" if pattern["type"] == "traces" else "trace."
            assert (start, end) == (f"{prefix}startTime", f"{prefix}endTime")
            assert pattern.get("key", semconv.SPANLOOM_COST_USD) in vars(semconv).values()
            found.add(uid)
    assert found == {"spanloom-timeouts", "spanloom-agent", "spanloom-cost"}
    assert found <= {file.stem for file in FILES}


def test_an_exemplar_opens_its_trace() -> None:
    (destination,) = sources()["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination["name"] == semconv.LOG_TRACE_ID
    assert sources()[destination["datasourceUid"]]["type"] == "jaeger"


def test_the_step_of_prometheus_is_its_scrape_interval() -> None:
    text = (ROOT / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    interval = yaml.safe_load(text)["global"]["scrape_interval"]
    assert sources()["prometheus"]["jsonData"]["timeInterval"] == interval


def test_a_span_finds_its_log_lines() -> None:
    link = sources()["jaeger"]["jsonData"]["tracesToLogsV2"]
    assert sources()[link["datasourceUid"]]["type"] == "loki"
    assert link["customQuery"] is True
    assert link["query"] == f'{{${{__tags}}}} | {semconv.LOG_TRACE_ID} = "${{__trace.traceId}}"'
    text = (ROOT / "loki/loki.yaml").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(text)["limits_config"]["otlp_config"]["resource_attributes"][
        "attributes_config"
    ]
    for tag in link["tags"]:
        assert tag["key"] in rule["attributes"]
        assert tag["value"] == tag["key"].replace(".", "_")


def test_a_log_line_finds_its_trace() -> None:
    (field,) = sources()["loki"]["jsonData"]["derivedFields"]
    assert (field["matcherType"], field["matcherRegex"]) == ("label", semconv.LOG_TRACE_ID)
    assert field["url"] == "${__value.raw}"
    assert sources()[field["datasourceUid"]]["type"] == "jaeger"


def test_a_span_finds_the_series_of_its_like() -> None:
    link = sources()["jaeger"]["jsonData"]["tracesToMetrics"]
    assert sources()[link["datasourceUid"]]["type"] == "prometheus"
    text = (ROOT / "otel-collector.yaml").read_text(encoding="utf-8")
    connector = yaml.safe_load(text)["connectors"]["span_metrics"]
    dimensions = {each["name"] for each in connector["dimensions"]} | {"service.name"}
    for tag in link["tags"]:
        assert tag["key"] in dimensions
        assert tag["value"] == tag["key"].replace(".", "_")
    for asked in link["queries"]:
        assert "{$__tags" in asked["query"]
        assert "traces_span_metrics_" in asked["query"]
