"""OTLP from other hosts: TLS, and a token that may be changed while the Collector runs."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx2
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.stack import queries
from tests.stack.programs import Collector, Jaeger, collector, jaeger
from tests.stack.queries import eventually
from tests.stack.senders import PATIENCE_S
from tests.stack.test_collector_config import certificate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return certificate(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory, traces: Jaeger, secrets: dict[str, str]
) -> Iterator[Collector]:
    made = collector(tmp_path_factory.mktemp("secure"), traces, **secrets)
    made.command = [*made.command, "--config", "deploy/collector/secure.yaml"]
    with made:
        yield made


@pytest.fixture(autouse=True)
def no_bundle_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`requests`, which the SDK's exporter uses, prefers these to the certificate it is given."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def trusting(secrets: dict[str, str]) -> httpx2.Client:
    """A client that trusts the Collector's certificate, and no other."""
    context = ssl.create_default_context(cafile=secrets["OTLP_TLS_CERT"])
    return httpx2.Client(verify=context, trust_env=False, timeout=60)


def send(exporter: OTLPSpanExporter | GrpcSpanExporter, service: str) -> str:
    """One span; its id."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("hello") as span:
        pass
    provider.shutdown()
    return f"{span.get_span_context().span_id:016x}"


def by_http(secure: Collector, certificate_file: str, token: str) -> OTLPSpanExporter:
    return OTLPSpanExporter(
        f"{secure.http.replace('http:', 'https:')}/v1/traces",
        certificate_file=certificate_file,
        headers={"authorization": f"Bearer {token}"},
        timeout=PATIENCE_S,
    )


def test_with_the_certificate_and_the_token_spans_arrive_by_both_transports(
    secure: Collector, traces: Jaeger, secrets: dict[str, str]
) -> None:
    pem = Path(secrets["OTLP_TLS_CERT"])
    ids = {
        send(by_http(secure, str(pem), TOKEN), "secure"),
        send(
            GrpcSpanExporter(
                secure.grpc,
                credentials=grpc.ssl_channel_credentials(pem.read_bytes()),
                headers=(("authorization", f"Bearer {TOKEN}"),),
                timeout=PATIENCE_S,
            ),
            "secure",
        ),
    }

    eventually(
        lambda: set(queries.jaeger_span_ids(traces.url, "secure")),
        lambda seen: seen == ids,
        "both spans",
    )


def test_without_them_nothing_is_taken(secure: Collector, secrets: dict[str, str]) -> None:
    address = secure.http.replace("http:", "https:")
    client = trusting(secrets)

    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
        answer = client.post(f"{address}/v1/traces", json={}, headers=headers)
        assert answer.status_code == 401, headers
    good = {"authorization": f"Bearer {TOKEN}"}
    assert client.post(f"{address}/v1/traces", json={}, headers=good).status_code == 200
    try:
        plain = httpx2.post(f"{secure.http}/v1/traces", json={}, headers=good, timeout=60)
    except httpx2.TransportError:
        pass  # it hangs up after its 400, and that may overtake it
    else:
        assert plain.status_code == 400
    with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
        httpx2.post(f"{address}/v1/traces", json={}, headers=good, timeout=60)


def test_a_token_is_changed_without_a_restart(
    secure: Collector, traces: Jaeger, secrets: dict[str, str]
) -> None:
    file = Path(secrets["OTLP_TOKEN_FILE"])
    file.write_text(f"{TOKEN}\nthe-next-one # from December on\n", encoding="utf-8")
    address = f"{secure.http.replace('http:', 'https:')}/v1/traces"
    client = trusting(secrets)

    def codes() -> list[int]:
        return [
            client.post(address, json={}, headers={"authorization": f"Bearer {token}"}).status_code
            for token in (TOKEN, "the-next-one")
        ]

    eventually(codes, lambda seen: seen == [200, 200], "both tokens")
    file.write_text("the-next-one\n", encoding="utf-8")
    eventually(codes, lambda seen: seen == [401, 200], "the next one only")


def test_an_agent_reaches_its_gateway_over_tls_with_a_token(
    tmp_path: Path, traces: Jaeger, secrets: dict[str, str]
) -> None:
    root = Path(__file__).parents[2] / "deploy/collector"
    Path(secrets["OTLP_TOKEN_FILE"]).write_text(f"{TOKEN}\n", encoding="utf-8")
    gateway = collector(
        tmp_path, traces, config=root / "gateway.yaml", name="gateway",
        TAIL_DECISION_WAIT="2s", TAIL_WAIT_AFTER_ROOT="1s", TAIL_SHARE_PERCENT="100", **secrets,
    )  # fmt: skip
    gateway.command = [*gateway.command, "--config", str(root / "secure.yaml")]
    agent = collector(
        tmp_path, config=root / "agent.yaml", name="agent", **secrets,
        COLLECTOR_GATEWAY_RESOLVER=f"{{static: {{hostnames: ['{gateway.grpc}']}}}}",
    )  # fmt: skip
    agent.command = [*agent.command, "--config", str(root / "secure-agent.yaml")]

    with gateway, agent:
        span_id = send(
            OTLPSpanExporter(f"{agent.http}/v1/traces", timeout=PATIENCE_S), "through-tls"
        )
        eventually(
            lambda: queries.jaeger_span_ids(traces.url, "through-tls"),
            lambda seen: seen == [span_id],
            "the span",
        )
