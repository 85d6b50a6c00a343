"""Every configuration file against the code's own constants: ports, versions, names.

The tests beside this one know what a file means; this one reads all of them, whatever they are,
and asks of each number and name whether the code knows it. A file that is added is read, too.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from scripts import stack_tools
from service.settings import Settings
from spanloom import ports, semconv
from spanloom.telemetry import setup
from tests.service.test_settings import environment_name

ROOT = Path(__file__).parents[2]
KINDS = {".yaml", ".yml", ".json", ".toml", ".env", ".py", ".sh", ""}
PLACES = ("deploy", "jaeger", "loki", "prometheus", "grafana", ".github")
SINGLE = (
    *("otel-collector.yaml", "docker-compose.yml", "Dockerfile", ".env.example"),
    *("service/processes.toml", ".dockerignore"),
)
NOT_CONFIGURATION = ("deploy/stack-tools/",)
"""Go modules: what they pin is compared by test_stack_tools.py."""

OTHERS_PORTS = {
    "jaeger/clickhouse.yaml": {9000},
    "jaeger/cassandra.yaml": {9042},
    "jaeger/opensearch.yaml": {9200},
    "jaeger/kafka-collector.yaml": {9092},
    "jaeger/kafka-ingester.yaml": {9092},
}
"""Ports of programs that we neither are nor configure, each in its own file."""
WELL_KNOWN = {22, 53, 80, 443}

IMAGES = {
    "otel/opentelemetry-collector-contrib": "COLLECTOR_VERSION",
    "jaegertracing/jaeger": "JAEGER_VERSION",
    "prom/prometheus": "PROMETHEUS_VERSION",
    "grafana/loki": "LOKI_VERSION",
    "grafana/grafana": "GRAFANA_VERSION",
    "pgvector/pgvector": "PGVECTOR_VERSION",
}


def files() -> list[Path]:
    found = [ROOT / name for name in SINGLE]
    for place in PLACES:
        found += sorted(path for path in (ROOT / place).rglob("*") if path.is_file())
    return [
        path
        for path in found
        if not str(path.relative_to(ROOT)).startswith(NOT_CONFIGURATION)
        and "__pycache__" not in path.parts
        and path.suffix != ".md"
    ]


FILES = files()
each_file = pytest.mark.parametrize(
    "file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES]
)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def test_every_kind_of_file_is_one_that_is_read() -> None:
    assert {file.suffix for file in FILES if not file.name.startswith(".")} <= KINDS
    names = {name_of(file) for file in FILES}
    assert set(SINGLE) <= names
    for place in ("deploy/collector/", "deploy/compose/", "jaeger/", "loki/", "prometheus/rules/",
                  "grafana/dashboards/", "grafana/provisioning/"):  # fmt: skip
        assert any(name.startswith(place) for name in names), place


# --- ports ----------------------------------------------------------------------------------------


@cache
def known_ports() -> set[int]:
    ours = {value for name, value in vars(ports).items() if name.isupper()}
    service = {
        field.default for name, field in Settings.model_fields.items() if name.endswith("_port")
    }
    return {*ours, *service}


def ports_in(text: str) -> set[int]:
    """Numbers behind a host, of a key or variable that is a port, of EXPOSE and of `A:B` ports."""
    found = re.findall(
        r"(?:\b\d+\.\d+\.\d+\.\d+|\blocalhost|\b[a-z][a-z0-9.-]*[a-z]|\})(?<!sha256):(\d{2,5})\b(?![.:-])",
        text,
    )
    found += re.findall(r"(?i)(?:^|[\s{,_\"-])\w*port\"?\s*[:=]\s*\"?(\d{2,5})\b", text)
    found += re.findall(r"\bEXPOSE (\d+)", text)
    found += re.findall(r"--(?:[a-z-]*port)[= ](\d{2,5})\b", text)
    return {int(port) for port in found}


@each_file
def test_every_port_is_one_of_the_constants(file: Path) -> None:
    allowed = known_ports() | WELL_KNOWN | OTHERS_PORTS.get(name_of(file), set())
    assert ports_in(text_of(file)) <= allowed


@pytest.mark.parametrize(
    "line",
    ["endpoint: 127.0.0.1:4316", "containerPort: 8008", "EXPOSE 8080", "- 0.0.0.0:4417",
     "url: http://collector:4817/v1", "LOKI_HTTP_PORT=3101", "${env:A:-127.0.0.1:14371}",
     "127.0.0.1:${AGENT_API_PORT:-8000}:8080", 'port: "9091"', "--otlp-http-port 4328"],
)  # fmt: skip
def test_a_wrong_port_would_be_seen(line: str) -> None:
    seen = ports_in(line)
    assert seen
    assert not seen <= known_ports() | WELL_KNOWN


# --- versions -------------------------------------------------------------------------------------


@each_file
def test_an_image_of_a_program_has_the_version_that_is_written_once(file: Path) -> None:
    versions = stack_tools.versions()
    for image, variable in IMAGES.items():
        for tag in re.findall(rf"{image}:(\S+?)[\"'\s,]", text_of(file) + "\n"):
            plain = tag.removeprefix("v") if image == "prom/prometheus" else tag
            assert plain == versions[variable] or plain.startswith(f"${{{variable}:?"), tag


def test_python_is_the_same_everywhere() -> None:
    """The image's is one that the project supports, in every stage and in the workflows."""
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    minors = re.findall(r"Python :: (3\.\d+)\"", str(project["classifiers"]).replace("'", '"'))
    assert minors
    images = set(re.findall(r"^FROM python:(\S+)", text_of(ROOT / "Dockerfile"), re.MULTILINE))
    assert len(images) == 1
    (image,) = images
    assert ".".join(image.split(".")[:2]) in minors
    for workflow in sorted((ROOT / ".github").rglob("*.yml")):
        for line in re.findall(r"python-version: \[?([^\]\n$]+)", text_of(workflow)):
            assert set(re.findall(r"3\.\d+", line)) <= set(minors), workflow


# --- variables ------------------------------------------------------------------------------------


@cache
def read_by_the_code() -> set[str]:
    """AGENT_, SPANLOOM_ and OTEL_ names that our code or the SDK looks up."""
    found = {environment_name(field) for field in Settings.model_fields}
    found |= {f"AGENT_{field.upper()}" for field in Settings.model_fields}
    for folder in ("spanloom", "scripts", "service"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(text_of(file))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= set(re.findall(r"^(?:SPANLOOM|OTEL)_[A-Z0-9_]+$", node.value))
    from opentelemetry.sdk import environment_variables  # noqa: PLC0415

    return found | {name for name in vars(environment_variables) if name.startswith("OTEL_")}


@cache
def expanded_by_files() -> set[str]:
    """Names that a configuration file, a script or compose itself puts in."""
    found = set()
    for file in FILES:
        found |= set(re.findall(r"(?<!\$)\$\{?(?:env:)?([A-Z][A-Z0-9_]+)", text_of(file)))
    return found


OUR_PREFIXES = r"AGENT|SPANLOOM|OTEL|COLLECTOR|JAEGER|LOKI|OTLP|TAIL|PROMETHEUS|REAP|GRAFANA"
READ_BY_OTHERS = {
    "PROMETHEUS_MULTIPROC_DIR",  # prometheus_client
    "OTEL_EXPORTER_OTLP_CERTIFICATE",  # the OTLP exporter, like the next two
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
}


def variables_nobody_reads(text: str) -> set[str]:
    named = set(re.findall(rf"\b(?:{OUR_PREFIXES})_[A-Z0-9_]*[A-Z0-9]\b(?![*…])", text))
    return named - read_by_the_code() - expanded_by_files() - READ_BY_OTHERS


@each_file
def test_every_variable_is_read_by_somebody(file: Path) -> None:
    """A misspelt AGENT_, SPANLOOM_, OTEL_ or program's variable would be set in vain."""
    if name_of(file).startswith("grafana/boards/"):
        return  # constants of a program that runs beforehand
    assert variables_nobody_reads(text_of(file)) == set()


@pytest.mark.parametrize(
    "line",
    ["AGENT_WORKER: 4", "SPANLOOM_PROPAGATE=api", "OTEL_TRACE_SAMPLER: always_off",
     "JAEGER_QUERY_LISTENS: 0.0.0.0:16686", "- name: COLLECTOR_QUEUE_FOLDER"],
)  # fmt: skip
def test_a_misspelt_variable_would_be_seen(line: str) -> None:
    assert variables_nobody_reads(line)


# --- names ----------------------------------------------------------------------------------------

CONSTANTS = {value for value in vars(semconv).values() if isinstance(value, str)}
UNITS = ("", "_seconds", "_ratio", "_bytes")
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count", "_created")


@cache
def known_names() -> set[str]:
    """Attributes, and metrics and labels as Prometheus spells them."""
    underscored = {re.sub(r"\W", "_", constant) for constant in CONSTANTS}
    red = {"traces_span_metrics_calls", "traces_span_metrics_duration"}
    return {
        name + unit + suffix for name in underscored | red for unit in UNITS for suffix in SUFFIXES
    }


@cache
def own_metrics() -> set[str]:
    """What `spanloom serve` and `spanloom reap` say about themselves; named where they are made."""
    found = set()
    for file in (ROOT / "spanloom/server").rglob("*.py"):
        text = text_of(file)
        found |= set(re.findall(r"\"(spanloom_[a-z_]+)\"", text))
        if prefix := re.search(r"f\"(spanloom_\w*)\{name\}\"", text):
            found |= {prefix[1] + word for word in re.findall(r"\"([a-z_]+)\"", text)}
    return {name + suffix for name in found for suffix in SUFFIXES}


@cache
def recorded() -> re.Pattern[str]:
    """Series that a rule records: `level:metric:operations`."""
    names = re.findall(r"record: (\S+)", text_of(ROOT / "prometheus/rules/recording.yml"))
    assert names
    return re.compile(rf"(?<![\w:])(?:{'|'.join(names)})(?![\w:])")


def metrics_nobody_makes(text: str) -> set[str]:
    pattern = (
        r"(?<![\w$./{-])(?:agent|spanloom|gen_ai|langgraph|traces_span_metrics)"
        r"_[a-z0-9_]*[a-z0-9]\b(?![.*/\\(])"
    )
    named = set(re.findall(pattern, recorded().sub("", text)))
    return named - known_names() - own_metrics()


def attributes_nobody_knows(text: str) -> set[str]:
    """Names written out: no pattern, no file name, no module."""
    pattern = r"(?<![\w./\\^])((?:gen_ai|spanloom|langgraph)\.[a-z_]+(?:\.[a-z_]+)*)\b(?![\\.*(|/])"
    modules = {f"spanloom.{path.stem}" for path in (ROOT / "spanloom").iterdir()}
    return set(re.findall(pattern, text)) - CONSTANTS - modules - {"spanloom.yaml"}


@each_file
def test_every_metric_and_label_is_one_that_is_made(file: Path) -> None:
    if file.suffix != ".py":  # there they are the constants; what comes of them is read here, too
        assert metrics_nobody_makes(text_of(file)) == set()


@each_file
def test_every_attribute_is_one_of_the_conventions(file: Path) -> None:
    """Of the GenAI, LangGraph and our own names."""
    assert attributes_nobody_knows(text_of(file)) == set()


def test_a_misspelt_name_would_be_seen() -> None:
    for expression in (
        "sum(rate(agent_request_total[5m]))",
        "agent_latency_seconds_buckets",
        "by (gen_ai_node)",
        "spanloom_telemetry_drops_total > 0",
        "traces_span_metrics_call_total{}",
        "spanloom_reap_outbox_span",
        "job_instance:spanloom_open_span:age_second",
    ):
        assert metrics_nobody_makes(expression), expression
    for line in ("- name: gen_ai.tool.names", 'attributes["spanloom.outcomes"]'):
        assert attributes_nobody_knows(line), line


def test_services_are_called_as_they_call_themselves() -> None:
    """`service_name` in queries, targets and rules is what a process hands to setup()."""
    made = set()
    for file in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(file))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == setup.__name__:
                made |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    made |= set(re.findall(r"SERVICE_NAME: Final = \"(.+)\"", "".join(
        text_of(file) for file in (ROOT / "service").rglob("*.py"))))  # fmt: skip
    assert {"retrieval", "chat-page"} <= made
    for file in FILES:
        for name in re.findall(r"service_name(?:=|: ?)\\*\"?([a-z][a-z-]+)\"?", text_of(file)):
            assert name in made, f"{name} in {name_of(file)}"
