"""Jaeger's configurations for storages that are not run here.

The real Jaeger reads each file, builds its pipelines and calls its storage, where nobody is: what
it then says must be about the connection. A key it does not know, a storage that is not compiled
in or a pipeline that names nothing is told before any connection is tried.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.stack.programs import ROOT, Jaeger, address, jaeger

WAIT_S = 60
VARIANTS = {
    "clickhouse": ("CLICKHOUSE_ADDRESS", "failed to ping ClickHouse"),
    "cassandra": ("CASSANDRA_CONTACT_POINT", "unable to dial control conn"),
    "opensearch": ("OPENSEARCH_URL", "no Elasticsearch node available"),
    "kafka-collector": ("KAFKA_BROKER", "unable to open connection to broker"),
    "kafka-ingester": ("KAFKA_BROKER", "unable to open connection to broker"),
}
REFUSED = "connect: connection refused"
# The configuration's own errors, by the collector framework that Jaeger is built on.
WRONG = ("invalid keys", "invalid configuration", "unknown type", "failed to get config")


def variant(folder: Path, name: str, config: Path | None = None) -> tuple[Jaeger, str]:
    """A Jaeger with that file, and the address of the storage that nobody is on."""
    nobody = address()
    given = {
        variable: f"http://{nobody}" if variable.endswith("_URL") else nobody
        for variable, _ in VARIANTS.values()
    }
    passwords = {
        f"{storage}_PASSWORD": "secret" for storage in ("CLICKHOUSE", "CASSANDRA", "OPENSEARCH")
    }
    program = jaeger(
        folder, None, config=config or ROOT / f"jaeger/{name}.yaml", **given, **passwords
    )
    return program, nobody


def said(program: Jaeger, *texts: str) -> str:
    """The log once it has all the texts, or once the program has ended by itself."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end and program.running:
        if all(text in program.log for text in texts):
            break
        time.sleep(0.2)
    return program.log


@contextlib.contextmanager
def launched(program: Jaeger) -> Iterator[Jaeger]:
    """Started without waiting for a readiness that most of these never reach."""
    program.launch()
    try:
        yield program
    finally:
        program.stop()


def assert_only_the_connection_failed(log: str, name: str, nobody: str) -> None:
    _, complaint = VARIANTS[name]
    assert not [text for text in WRONG if text in log], log[-3000:]
    for text in (complaint, nobody, REFUSED):
        assert text in log, log[-3000:]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "kafka-collector"])
def test_jaeger_takes_every_key_and_fails_only_to_connect(tmp_path: Path, name: str) -> None:
    program, nobody = variant(tmp_path, name)
    with launched(program):
        log = said(program, VARIANTS[name][1], nobody, REFUSED)
    assert_only_the_connection_failed(log, name, nobody)


def test_the_first_half_of_kafka_acknowledges_no_span_that_kafka_has_not(tmp_path: Path) -> None:
    """It connects with the first span only, so it gets one."""
    program, nobody = variant(tmp_path, "kafka-collector")
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "name": "一步",
        "startTimeUnixNano": str(time.time_ns()),
        "endTimeUnixNano": str(time.time_ns()),
    }
    with program:
        try:
            answer = httpx2.post(
                f"{program.otlp_http}/v1/traces",
                json={"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]},
                timeout=5,
                trust_env=False,
            )
        except httpx2.TimeoutException:  # it still tries, and the sender will
            pass
        else:
            assert answer.status_code in {429, 502, 503, 504}, f"{answer.status_code} {answer.text}"
        log = said(program, VARIANTS["kafka-collector"][1], nobody, REFUSED)
    assert_only_the_connection_failed(log, "kafka-collector", nobody)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_misspelt_key_is_told_from_a_storage_that_is_away(tmp_path: Path, name: str) -> None:
    """What makes the tests above mean something."""
    text = (ROOT / f"jaeger/{name}.yaml").read_text(encoding="utf-8")
    variable, _ = VARIANTS[name]
    (line,) = (line for line in text.splitlines() if variable in line)
    key = line.strip().partition(":")[0]
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(line, line.replace(key, f"{key}_x")), encoding="utf-8")
    program, nobody = variant(tmp_path, name, broken)
    with launched(program):
        log = said(program, "invalid keys")
    assert f"{key}_x" in log, log[-3000:]
    with pytest.raises(AssertionError):
        assert_only_the_connection_failed(log, name, nobody)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_says_in_its_head_that_it_is_not_run_here(name: str) -> None:
    text = (ROOT / f"jaeger/{name}.yaml").read_text(encoding="utf-8")
    assert "NOT RUN HERE" in text.partition("\nextensions:")[0]


def test_the_storages_are_used_as_the_single_node_is() -> None:
    """The same ports, Monitor tab and page; only the storage differs."""
    single = yaml.safe_load((ROOT / "jaeger/config.yaml").read_text(encoding="utf-8"))
    for name in VARIANTS:
        other = yaml.safe_load((ROOT / f"jaeger/{name}.yaml").read_text(encoding="utf-8"))
        if name != "kafka-collector":
            for extension in ("jaeger_query", "healthcheckv2"):
                assert other["extensions"][extension] == single["extensions"][extension], name
            storage, expected = (it["extensions"]["jaeger_storage"] for it in (other, single))
            assert storage["metric_backends"] == expected["metric_backends"], name
        if name != "kafka-ingester":
            assert other["receivers"] == single["receivers"], name
