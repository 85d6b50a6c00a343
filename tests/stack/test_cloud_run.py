"""The Collector beside a service on Cloud Run, with the settings that service.yaml gives it.

service ─▶ sidecar (agent.yaml, cloudrun/collector.yaml) ─ TLS, token ─▶ Collector ─▶ backends
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.cli.reaping import Agent, Reap
from tests.cli.test_reap import IN_FLIGHT
from tests.deploy.test_cloud_run import environment
from tests.stack import queries
from tests.stack.programs import (
    ROOT,
    Collector,
    Jaeger,
    Loki,
    Prometheus,
    collector,
    jaeger,
    loki,
    prometheus,
    together,
)
from tests.stack.queries import eventually
from tests.stack.senders import sender
from tests.stack.service import agent_service
from tests.stack.test_collector_config import certificate, validate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

SIDECAR = ("deploy/collector/agent.yaml", "deploy/cloudrun/collector.yaml")
TRACES = 30
BATCHES = 12
"""More than the queue's consumers, so that some have not even begun when it is told to stop."""


@dataclass
class CloudRun:
    sidecar: Collector
    central: Collector
    jaeger: Jaeger
    prometheus: Prometheus
    loki: Loki
    reap: Reap


@pytest.fixture(scope="module")
def cloud_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudRun]:
    folder = tmp_path_factory.mktemp("cloud-run")
    secrets = certificate(folder)
    with ExitStack() as started:
        metrics = prometheus(folder)
        traces, logs = jaeger(folder, metrics), loki(folder)
        started.enter_context(together(metrics, traces, logs))
        reap = started.enter_context(Reap(folder / "reap", traces.otlp_http))
        central = collector(
            folder, traces, metrics, logs, name="central", REAP_OTLP_ENDPOINT=reap.otlp, **secrets
        )
        central.command = [*central.command, "--config", "deploy/collector/secure.yaml"]
        started.enter_context(central)
        over_tls = central.http.replace("http:", "https:")
        given = environment("collector") | {
            "COLLECTOR_GATEWAY_RESOLVER": json.dumps({"static": {"hostnames": [central.grpc]}}),
            "PROMETHEUS_OTLP_ENDPOINT": over_tls,
            "LOKI_OTLP_ENDPOINT": over_tls,
            "REAP_OTLP_ENDPOINT": over_tls,
            "GATEWAY_CA": secrets["GATEWAY_CA"],
            "GATEWAY_TOKEN_FILE": secrets["GATEWAY_TOKEN_FILE"],
        }
        # Its own address here, not service.yaml's: several run on this host.
        del given["COLLECTOR_HEALTH_ENDPOINT"]
        sidecar = collector(folder, name="sidecar", config=ROOT / SIDECAR[0], **given)
        sidecar.command = [*sidecar.command, "--config", SIDECAR[1]]
        started.enter_context(sidecar)
        yield CloudRun(sidecar, central, traces, metrics, logs, reap)


def test_the_configuration_is_valid_with_what_the_service_gives_it() -> None:
    checked = validate(environment("collector"), *SIDECAR)

    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout + checked.stderr


def test_a_question_is_found_in_every_backend(
    cloud_run: CloudRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Trace, log lines, and the agent's metrics, which nobody scrapes here."""
    resource = environment("api")["OTEL_RESOURCE_ATTRIBUTES"]
    folder = tmp_path_factory.mktemp("service")
    with agent_service(
        folder, cloud_run.sidecar.http, OTEL_RESOURCE_ATTRIBUTES=resource
    ) as service:
        trace_id, answer = service.ask("KV cache 节省了什么?")
        assert answer.status_code == 200, answer.text

        found = eventually(
            lambda: queries.jaeger_trace(cloud_run.jaeger.url, trace_id),
            lambda trace: trace is not None and len(trace["processes"]) >= 3,
            "the trace with all three processes",
        )
        assert found is not None
        eventually(
            lambda: queries.prometheus_value(
                cloud_run.prometheus.url, 'sum(agent_requests_total{status="200"})'
            ),
            lambda seen: seen >= 1,
            "the request counted",
        )
        eventually(
            lambda: queries.loki_entries(
                cloud_run.loki.url, f'{{service_name="agent-api"}} | trace_id="{trace_id}"'
            ),
            bool,
            "the log lines",
        )
    (exemplar, *_) = eventually(
        lambda: queries.prometheus_exemplars(
            cloud_run.prometheus.url, "traces_span_metrics_duration_seconds_bucket"
        ),
        bool,
        "an exemplar of the spans' metrics",
    )
    assert len(exemplar["labels"]["trace_id"]) == 32


def test_metrics_of_a_service_that_is_scraped_are_not_doubled(cloud_run: CloudRun) -> None:
    """Without faas.name agent_* are left out as before, here and behind."""
    with sender(cloud_run.sidecar.http, "scraped") as shop:
        shop.meter.create_counter("agent_requests_total").add(3)
        shop.meter.create_counter("marker_total").add(1)
        shop.flush()
    eventually(
        lambda: queries.prometheus(cloud_run.prometheus.url, 'marker_total{job="scraped"}'),
        bool,
        "what came with them",
    )
    assert queries.prometheus(cloud_run.prometheus.url, 'agent_requests_total{job="scraped"}') == []


def test_the_open_spans_of_a_killed_instance_are_ended(cloud_run: CloudRun) -> None:
    """Its last sign of life went through both Collectors to `spanloom reap`."""
    http, service = cloud_run.sidecar.http, "killed"
    with Agent(http, http, OTEL_SERVICE_NAME=service) as agent:
        cloud_run.reap.waits_for(IN_FLIGHT, 2)
        # What a batch in memory still held would die with the process.
        eventually(
            lambda: queries.jaeger_span_ids(cloud_run.jaeger.url, service), bool, "the ended span"
        )
        agent.kill()

    eventually(
        lambda: queries.jaeger_span_ids(cloud_run.jaeger.url, service),
        lambda seen: len(seen) == 3 == len(set(seen)),
        "the span that had ended and the two that had not",
    )


def test_an_instance_told_to_stop_loses_nothing_it_had_acknowledged(cloud_run: CloudRun) -> None:
    """Told so while the Collector behind it hangs, which takes all of it a second later."""
    central, sidecar = cloud_run.central, cloud_run.sidecar
    central.freeze()
    try:
        with sender(sidecar.http, "stopped") as shop:
            for _ in range(BATCHES):
                for _ in range(TRACES):
                    shop.trace("retrieve", "chat m")
                shop.flush()
                time.sleep(0.5)  # longer than the queue waits for a batch to fill
            sent = set(shop.span_ids)
        assert sidecar.process is not None
        sidecar.process.terminate()
        time.sleep(1)
    finally:
        central.resume()
    sidecar.stop()
    assert len(sent) == 3 * TRACES * BATCHES
    try:
        eventually(
            lambda: set(queries.jaeger_span_ids(cloud_run.jaeger.url, "stopped")),
            lambda seen: seen == sent,
            f"{len(sent)} spans",
        )
    finally:
        sidecar.start()
