"""The configuration of Jaeger, Loki and Prometheus as text: ports, variables, links."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from service.settings import Settings
from spanloom import ports

ROOT = Path(__file__).parents[2]
JAEGER = ROOT / "jaeger/config.yaml"
VARIANTS = sorted((ROOT / "jaeger").glob("*.yaml"))


def defaults(file: Path) -> dict[str, set[str]]:
    """Each `${env:NAME:-default}` or `${NAME:-default}` of a file; one name, one default."""
    text = file.read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for name, default in re.findall(r"\$\{(?:env:)?([A-Z0-9_]+)(?::-([^}]*))?\}", text):
        found.setdefault(name, set()).add(default)
    return found


@pytest.mark.parametrize(
    "file", [*VARIANTS, ROOT / "loki/loki.yaml"], ids=lambda file: str(file.relative_to(ROOT))
)
def test_each_variable_has_one_default_and_no_password(file: Path) -> None:
    for name, values in defaults(file).items():
        assert len(values) == 1, f"{name} has the defaults {values}"
        if "PASSWORD" in name:
            assert values == {""}, f"{name} has a default in {file.name}"


def test_jaeger_listens_where_the_constants_say() -> None:
    found = {name: next(iter(values)) for name, values in defaults(JAEGER).items()}
    here = "127.0.0.1"
    expected = {
        "JAEGER_OTLP_GRPC_LISTEN": f"{here}:{ports.JAEGER_OTLP_GRPC}",
        "JAEGER_OTLP_HTTP_LISTEN": f"{here}:{ports.JAEGER_OTLP_HTTP}",
        "JAEGER_QUERY_LISTEN": f"{here}:{ports.QUERY_HTTP}",
        "JAEGER_QUERY_GRPC_LISTEN": f"{here}:{ports.JAEGER_QUERY_GRPC}",
        "JAEGER_HEALTH_LISTEN": f"{here}:{ports.JAEGER_HEALTH}",
        "JAEGER_METRICS_HOST": here,
        "JAEGER_METRICS_PORT": str(ports.JAEGER_METRICS),
        "PROMETHEUS_URL": f"http://{here}:{ports.PROMETHEUS}",
    }
    assert expected == {name: found[name] for name in expected}


def test_loki_listens_where_the_constants_say() -> None:
    found = defaults(ROOT / "loki/loki.yaml")
    assert found["LOKI_HTTP_PORT"] == {str(ports.LOKI)}
    assert found["LOKI_GRPC_PORT"] == {str(ports.LOKI_GRPC)}
    assert found["LOKI_LISTEN_HOST"] == {"127.0.0.1"}


def test_prometheus_scrapes_where_the_constants_say() -> None:
    folder = ROOT / "prometheus"
    main = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))
    files = {
        file
        for job in main["scrape_configs"]
        for discovery in job["file_sd_configs"]
        for file in discovery["files"]
    }
    assert files == {f"targets/{path.name}" for path in (folder / "targets").iterdir()}
    by_job = {
        group["labels"]["job"]: group["targets"]
        for group in yaml.safe_load((folder / "targets/programs.yml").read_text(encoding="utf-8"))
    }
    here = "127.0.0.1"
    assert by_job["otel-collector"] == [f"{here}:{ports.COLLECTOR_METRICS}"]
    assert by_job["jaeger"] == [f"{here}:{ports.JAEGER_METRICS}"]
    assert by_job["loki"] == [f"{here}:{ports.LOKI}"]
    assert by_job["spanloom-reap"] == [f"{here}:{ports.REAP_HTTP}"]
    assert by_job["prometheus"] == [f"{here}:{ports.PROMETHEUS}"]
    (agent,) = yaml.safe_load((folder / "targets/agent-api.yml").read_text(encoding="utf-8"))
    assert agent["targets"] == [f"{here}:{Settings.model_fields['api_port'].default}"]
    red = (folder / "targets/collector-red.yml").read_text(encoding="utf-8")
    assert f":{ports.COLLECTOR_PROMETHEUS}" in red


EXPLORE_SOURCES = {"loki", "prometheus", "jaeger"}


def links() -> list[dict[str, Any]]:
    ui = json.loads((ROOT / "jaeger/ui.json").read_text(encoding="utf-8"))
    return [*ui["linkPatterns"], *(item for group in ui["menu"] for item in group["items"])]


@pytest.mark.parametrize("link", links(), ids=lambda link: link.get("text") or link["label"])
def test_each_link_of_jaegers_page_is_an_address_in_grafana(link: dict[str, Any]) -> None:
    """An Explore link's query survives the way through the address; placeholders included."""
    # Placeholders hold what an address must not; the page encodes what it puts there.
    url = re.sub(r"#\{[^}]*\}", "PLACEHOLDER", link["url"])
    parts = urlsplit(url)
    assert (parts.hostname, parts.port) == ("127.0.0.1", ports.GRAFANA)
    assert " " not in url
    if parts.path != "/explore":
        return
    (panes,) = parse_qs(parts.query, strict_parsing=True)["panes"]
    for pane in json.loads(panes).values():
        assert pane["datasource"] in EXPLORE_SOURCES
        assert set(pane["range"]) == {"from", "to"}
        for query in pane["queries"]:
            assert query["datasource"]["uid"] == pane["datasource"]
            assert query["expr"]


def test_links_use_only_what_jaegers_page_fills_in() -> None:
    """It skips a link on a tag, without a word to the reader, for one placeholder it has not.

    On a tag: attributes by their names, and a trace's fields as `trace.NAME`, without the formats
    that links on a whole trace have.
    """
    ui = json.loads((ROOT / "jaeger/ui.json").read_text(encoding="utf-8"))
    for pattern in ui["linkPatterns"]:
        for placeholder in re.findall(r"#\{([^}]*)\}", pattern["url"] + pattern["text"]):
            name, *formats = (part.strip() for part in placeholder.split("|"))
            if pattern["type"] == "traces":
                assert name in {"traceID", "traceName", "startTime", "endTime", "duration"}, pattern
            else:
                assert not formats, pattern
                assert name in {f"trace.{field}" for field in ("traceID", "traceName")}, pattern
