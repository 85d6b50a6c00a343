"""The Collector's files agree with each other and with the code's names, and drop nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from spanloom import ports, semconv

ROOT = Path(__file__).parents[2]
SINGLE = "otel-collector.yaml"
AGENT = "deploy/collector/agent.yaml"
GATEWAY = "deploy/collector/gateway.yaml"
NAMES = {name: value for name, value in vars(semconv).items() if isinstance(value, str)}


def configuration(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return loaded


def defaults(path: str) -> dict[str, str]:
    """Variables with their defaults; None is not among them."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.findall(r"\$\{env:(\w+):-([^}]*)\}", text)
    assert len(set(found)) == len({name for name, _ in found}), "one default for each variable"
    return dict(found)


@pytest.mark.parametrize("section", ["extensions", "receivers", "processors", "exporters"])
def test_an_agent_has_what_it_shares_with_the_single_collector_word_for_word(section: str) -> None:
    single, agent = configuration(SINGLE)[section], configuration(AGENT)[section]

    shared = single.keys() & agent.keys()
    assert {name: single[name] for name in shared} == {name: agent[name] for name in shared}
    assert agent.keys() - shared == ({"load_balancing"} if section == "exporters" else set())
    left_out = {"processors": {"transform/red"}, "exporters": {"otlp_grpc/jaeger"}}
    assert single.keys() - shared == left_out.get(section, set())


def test_a_gateway_counts_as_the_single_collector_does() -> None:
    """Same names, buckets and dimensions: a dashboard works with both."""
    single = configuration(SINGLE)["connectors"]["span_metrics"]
    gateway = configuration(GATEWAY)["connectors"]
    differing = {"exemplars", "exclude_dimensions"}

    for name in ("span_metrics", "span_metrics/kept"):
        for key in (single.keys() | gateway[name].keys()) - differing:
            assert single[key] == gateway[name][key], (name, key)
    assert gateway["span_metrics"]["exemplars"] == {"enabled": False}
    assert gateway["span_metrics/kept"]["exemplars"] == single["exemplars"]
    # One more count than bounds, or Prometheus would refuse the exemplars' series.
    statements = configuration(GATEWAY)["processors"]["transform/exemplars_only"]
    zeros = next(s for s in statements["metric_statements"] if "bucket_counts" in s).count("0")
    assert len(single["histogram"]["explicit"]["buckets"]) + 1 == zeros


@pytest.mark.parametrize("path", [SINGLE, AGENT, GATEWAY])
def test_nothing_is_given_up(path: str) -> None:
    """Queues on disk that make senders wait, retries without end, no processor that buffers."""
    config = configuration(path)

    used = {
        name
        for pipeline in config["service"]["pipelines"].values()
        for name in pipeline["exporters"]
    }
    for name in used & config["exporters"].keys():
        exporter = config["exporters"][name]
        queue = exporter["sending_queue"]
        assert queue["storage"] == "file_storage", name
        assert queue["block_on_overflow"] is (name != "otlp_http/reap"), name
        assert (
            exporter["retry_on_failure"] | {"enabled": True, "max_elapsed_time": "0s"}
            == (exporter["retry_on_failure"])
        ), name
        assert "batch" in queue, name
    assert not any(name.partition("/")[0] == "batch" for name in config["processors"])
    for name, pipeline in config["service"]["pipelines"].items():
        if "otlp" in pipeline["receivers"]:
            assert pipeline["processors"][0] == "memory_limiter", name


@pytest.mark.parametrize("path", [SINGLE, AGENT, GATEWAY])
def test_a_batch_has_room_for_the_largest_request(path: str) -> None:
    """An item over max_size would be dropped, so no request may be larger."""
    config = configuration(path)
    protocols = config["receivers"]["otlp"]["protocols"]

    largest = protocols["grpc"]["max_recv_msg_size_mib"] << 20
    assert largest == protocols["http"]["max_request_body_size"]
    for name in ("otlp_grpc/jaeger", "load_balancing", "otlp_http/reap"):
        if name in config["exporters"]:
            assert config["exporters"][name]["sending_queue"]["batch"]["max_size"] > largest, name


def test_addresses_are_the_default_ports() -> None:
    found = defaults(SINGLE)

    assert found["OTLP_GRPC_ENDPOINT"] == f"127.0.0.1:{ports.OTLP_GRPC}"
    assert found["OTLP_HTTP_ENDPOINT"] == f"127.0.0.1:{ports.OTLP_HTTP}"
    assert found["JAEGER_OTLP_ENDPOINT"] == f"127.0.0.1:{ports.JAEGER_OTLP_GRPC}"
    assert found["PROMETHEUS_OTLP_ENDPOINT"] == f"http://127.0.0.1:{ports.PROMETHEUS}/api/v1/otlp"
    assert found["LOKI_OTLP_ENDPOINT"] == f"http://127.0.0.1:{ports.LOKI}/otlp"
    assert found["COLLECTOR_METRICS_PORT"] == str(ports.COLLECTOR_METRICS)
    for path in (AGENT, GATEWAY):
        different = {"COLLECTOR_MEMORY_LIMIT_MIB", "COLLECTOR_MEMORY_SPIKE_MIB"}
        common = (found.keys() & defaults(path).keys()) - (different if path == GATEWAY else set())
        assert {k: found[k] for k in common} == {k: defaults(path)[k] for k in common}


def patterns_of(statements: list[str], start: str) -> re.Pattern[str]:
    statement = next(s for s in statements if s.startswith(start))
    quoted = statement.split('"')[1]
    return re.compile(quoted.replace("\\\\", "\\").replace("$$", "$"))


def test_every_attribute_that_holds_content_is_stripped_and_no_other() -> None:
    processors = configuration(SINGLE)["processors"]
    stripped = [
        patterns_of(
            processors["transform/spans"]["trace_statements"],
            "delete_matching_keys(span.attributes",
        ),
        patterns_of(
            processors["transform/logs"]["log_statements"], "delete_matching_keys(log.attributes"
        ),
    ]
    inflight = processors["transform/inflight"]["log_statements"][0].partition('"]')[2]

    for pattern in (*stripped, re.compile(inflight.split('"')[1].replace("\\\\", "\\")[:-1])):
        hit = {value for value in NAMES.values() if pattern.search(value)}
        assert hit == semconv.CONTENT_ATTRIBUTES


def test_no_name_of_ours_is_taken_for_a_secret() -> None:
    """Least of all those of token counts."""
    blocked = configuration(SINGLE)["processors"]["redaction"]["blocked_key_patterns"]
    patterns = [re.compile(pattern.replace("$$", "$")) for pattern in blocked]

    def is_blocked(name: str) -> bool:
        return any(pattern.search(name) for pattern in patterns)

    assert [name for name in NAMES.values() if is_blocked(name)] == []
    for name in ("api_key", "db.password", "http.request.header.authorization", "access_token",
                 "token", "client.secret", "X-API-Key", "aws.secret_access_key"):  # fmt: skip
        assert is_blocked(name), name


def test_a_decision_waits_longer_than_a_dead_process_takes_to_be_ended() -> None:
    deadline = float(Settings.model_fields["deadline_s"].default)
    reap_after, on_the_way = 30, 15

    wait = defaults(GATEWAY)["TAIL_DECISION_WAIT"]
    assert float(wait.removesuffix("s")) >= deadline + reap_after + on_the_way


def test_dimensions_are_names_of_the_code() -> None:
    dimensions = configuration(SINGLE)["connectors"]["span_metrics"]["dimensions"]

    assert [d["name"] for d in dimensions if d["name"] not in NAMES.values()] == []


def test_the_table_of_settings_has_every_variable_with_its_default() -> None:
    """README.md against all files, both ways."""
    folder = ROOT / "deploy/collector"
    in_files: dict[str, set[str]] = {}
    for path in (ROOT / SINGLE, *folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        for name, default in re.findall(r"\$\{env:(\w+)(?::-([^}]*))?\}", text):
            in_files.setdefault(name, set()).update({default} - {""})

    settings = (folder / "README.md").read_text(encoding="utf-8").partition("## Settings")[2]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", settings, flags=re.MULTILINE)
    in_table = {name: set(re.findall(r"`([^`]+)`", cell)) for name, cell in rows}

    assert len(in_files) > 25
    assert in_table == in_files
