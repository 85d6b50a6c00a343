"""deploy/cloudrun: the service against the schema of Google's API, and against our own code."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scripts import stack_tools
from service.settings import Settings
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.trust import CANCELLED_GRACE_S
from tests.deploy.apart import package
from tests.deploy.dockerfile import ROOT, stages
from tests.service.test_settings import environment_name

pytestmark = [pytest.mark.xdist_group("cloud_run"), pytest.mark.timeout(300)]

FOLDER = ROOT / "deploy/cloudrun"
GIVEN = {
    "PROJECT": "my-project-1",
    "REGION": "europe-west1",
    "TAG": "0123abc",
    "COLLECTOR_HOST": "collector.internal",
}
FLUSH_S = CANCELLED_GRACE_S + TelemetrySettings().shutdown_timeout_s
"""What telemetry takes at most at the end: for what the server has cancelled, and to send."""
KILLED_AFTER_S = 10
"""Cloud Run's time between SIGTERM and SIGKILL."""
LONGEST_START_S = 240


def render(**variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, FOLDER / "render.py"],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


@cache
def service() -> dict[str, Any]:
    done = render(**GIVEN)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = yaml.safe_load(done.stdout)
    return loaded


def revision() -> dict[str, Any]:
    spec: dict[str, Any] = service()["spec"]["template"]["spec"]
    return spec


def containers() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in revision()["containers"]}


def environment(name: str) -> dict[str, str]:
    """Variables of a container that are written out."""
    return {each["name"]: each["value"] for each in containers()[name]["env"] if "value" in each}


# --- Google's own description of what it takes ----------------------------------------------------


@cache
def schemas() -> dict[str, Any]:
    """The schemas of the Cloud Run Admin API, from the discovery document in Google's client."""
    document = "run.v1.json"
    folder = package(
        "google-api-python-client",
        "2.202.0",
        keep=f"googleapiclient/discovery_cache/documents/{document}",
    )
    found: dict[str, Any] = json.loads((folder / document).read_text(encoding="utf-8"))["schemas"]
    return found


def closed(node: Any) -> Any:
    """As JSON schema, where nothing that is not named may stand, nor what is not supported."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items() if key not in ("id", "format")}
    if "$ref" in node:
        made["$ref"] = f"#/definitions/{node['$ref']}"
    if "properties" in node:
        made["additionalProperties"] = False
        made["properties"] = {
            key: closed(value)
            for key, value in node["properties"].items()
            if not value.get("description", "").startswith("Not supported by Cloud Run")
        }
    return made


def problems(document: dict[str, Any]) -> list[str]:
    definitions = {name: closed(schema) for name, schema in schemas().items()}
    validator = jsonschema.Draft7Validator(
        {"definitions": definitions, "$ref": "#/definitions/Service"}
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_it_is_a_service_of_the_cloud_run_api() -> None:
    assert problems(service()) == []
    assert (service()["apiVersion"], service()["kind"]) == ("serving.knative.dev/v1", "Service")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("containerConcurrency: 40", "containerConcurency: 40"),
        ("timeoutSeconds: 300", 'timeoutSeconds: "300"'),
        ("ports: [{name", "securityContext: {runAsUser: 1000}\n          ports: [{name"),
        ("httpGet: {path: /health, port: 8000}", "httpGet: {path: /health, port: http1}"),
        ("serviceAccountName:", "terminationGracePeriodSeconds: 45\n      serviceAccountName:"),
    ],
)
def test_what_cloud_run_does_not_know_would_be_found(old: str, new: str) -> None:
    text = (FOLDER / "service.yaml").read_text(encoding="utf-8")
    assert old in text
    assert problems(yaml.safe_load(text.replace(old, new)))


@pytest.mark.parametrize("kind", ["Service", "Revision"])
def test_every_annotation_is_known_where_it_stands(kind: str) -> None:
    described = schemas()["ObjectMeta"]["properties"]["annotations"]["description"]
    known = {
        name
        for name, kinds in re.findall(r"`([a-z.]+/[\w-]+)`: ([\w, ]+)", described)
        if kind in kinds.split(", ") or "All resources" in kinds
    } | set(re.findall(r"`([a-z.]+/[\w-]+)`", schemas()["RevisionTemplate"]["properties"]
            ["metadata"]["description"] if kind == "Revision" else ""))  # fmt: skip
    assert len(known) > 5
    holder = service() if kind == "Service" else service()["spec"]["template"]

    annotations = holder["metadata"]["annotations"]

    assert annotations.keys() <= known
    assert all(isinstance(value, str) for value in annotations.values())


# --- the service's own needs ----------------------------------------------------------------------


def test_only_the_api_takes_requests_and_the_others_are_there_before_it() -> None:
    with_ports = {name for name, each in containers().items() if "ports" in each}
    annotations = service()["spec"]["template"]["metadata"]["annotations"]
    needs = json.loads(annotations["run.googleapis.com/container-dependencies"])

    assert with_ports == {"api"}
    assert needs == {"api": ["retrieval", "collector"], "retrieval": ["collector"]}
    (port,) = containers()["api"]["ports"]
    assert port["containerPort"] == Settings.model_fields["api_port"].default
    (host,) = [
        instruction.text
        for instruction in stages()["agent"].instructions
        if "AGENT_API_HOST" in instruction.text
    ]
    assert "AGENT_API_HOST=0.0.0.0" in host


def listens(name: str) -> int:
    if name == "collector":
        return int(environment(name)["COLLECTOR_HEALTH_ENDPOINT"].rpartition(":")[2])
    default: int = Settings.model_fields[f"{name}_port"].default
    return default


@pytest.mark.parametrize("name", ["api", "retrieval", "collector"])
def test_probes_ask_what_listens_beyond_loopback_and_wait_for_a_slow_start(name: str) -> None:
    container = containers()[name]
    startup, liveness = container["startupProbe"], container["livenessProbe"]

    for probe in (startup, liveness):
        assert probe["httpGet"]["port"] == listens(name)
        assert probe["httpGet"]["path"] == ("/" if name == "collector" else "/health")
        assert probe["timeoutSeconds"] < probe["periodSeconds"]
    assert 45 <= startup["periodSeconds"] * startup["failureThreshold"] <= LONGEST_START_S
    if name != "api":
        assert "0.0.0.0" in json.dumps(container["env"])


def test_an_instance_has_time_to_stop() -> None:
    for name in ("api", "retrieval"):
        assert int(environment(name)["AGENT_SHUTDOWN_GRACE_S"]) + FLUSH_S < KILLED_AFTER_S
    assert revision()["timeoutSeconds"] > Settings.model_fields["deadline_s"].default


def test_cpu_is_there_between_requests_and_one_instance_always() -> None:
    annotations = service()["spec"]["template"]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert int(annotations["autoscaling.knative.dev/minScale"]) >= 1
    connections = (
        int(annotations["autoscaling.knative.dev/maxScale"])
        * int(environment("api")["AGENT_WORKERS"])
        * (Settings.model_fields["database_pool_size"].default + 1)
    )
    assert connections <= 90, "PostgreSQL takes 100 by default"


def test_an_instance_is_of_a_size_there_is_and_the_guide_prices_it() -> None:
    """Whole vCPUs together, or concurrency would have to be 1."""
    limits = [each["resources"]["limits"] for each in containers().values()]
    cpus = sum(float(each["cpu"].replace("500m", "0.5")) for each in limits)
    gib = sum({"1Gi": 1, "512Mi": 0.5}[each["memory"]] for each in limits)
    assert cpus in {1, 2, 4, 6, 8}
    guide = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    assert f"{cpus:g} × 0.000018 + {gib:g} × 0.000002 USD a second" in guide
    assert f"{cpus:g} vCPU and {gib:g} GiB together" in guide


def test_no_secret_is_written_down_and_each_is_described() -> None:
    referenced = {
        each["valueFrom"]["secretKeyRef"]["name"]
        for container in containers().values()
        for each in container["env"]
        if "valueFrom" in each
    } | {volume["secret"]["secretName"] for volume in revision()["volumes"]}
    text = (FOLDER / "README.md").read_text(encoding="utf-8")

    assert referenced
    assert {name for name in referenced if name in text} == referenced
    secrets = {environment_name(f) for f in ("openai_api_key", "anthropic_api_key", "database_url")}
    for name in containers():
        assert not environment(name).keys() & secrets


def test_every_variable_is_one_that_its_container_reads() -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    for name in ("api", "retrieval"):
        ours = {each["name"] for each in containers()[name]["env"]} - {"DATABASE_URL"}
        assert {key for key in ours if not key.startswith("OTEL_")} <= known
    read = set(
        re.findall(
            r"\$\{env:(\w+)",
            "".join(
                (ROOT / path).read_text(encoding="utf-8")
                for path in ("deploy/collector/agent.yaml", "deploy/cloudrun/collector.yaml")
            ),
        )
    )
    assert environment("collector").keys() <= read | {"GOMEMLIMIT"}
    # what has no default in the files is here
    assert {
        "COLLECTOR_GATEWAY_RESOLVER",
        "GATEWAY_CA",
        "GATEWAY_TOKEN_FILE",
    } <= environment("collector").keys()


def test_the_collectors_files_are_where_it_looks() -> None:
    mounted = {
        each["name"]: each["mountPath"] for each in containers()["collector"]["volumeMounts"]
    }
    files = {
        f"{mounted[volume['name']]}/{item['path']}"
        for volume in revision()["volumes"]
        for item in volume["secret"]["items"]
    }
    values = environment("collector")
    assert {values["GATEWAY_CA"], values["GATEWAY_TOKEN_FILE"]} == files


def test_the_collectors_queues_fit_into_its_memory() -> None:
    values = environment("collector")
    mib = 1024 * 1024
    queues = sum(int(v) for k, v in values.items() if k.endswith("_QUEUE_BYTES"))
    reap = 67_108_864
    limit = int(values["COLLECTOR_MEMORY_LIMIT_MIB"])
    spike = int(values["COLLECTOR_MEMORY_SPIKE_MIB"])

    assert queues + reap <= (limit - spike) * mib
    assert limit < 512
    assert int(values["GOMEMLIMIT"].removesuffix("MiB")) == limit * 8 // 10
    assert containers()["collector"]["resources"]["limits"]["memory"] == "512Mi"


def test_no_queue_of_the_sidecar_is_on_what_looks_like_a_disk() -> None:
    """There is no disk, nor a folder that the image's user may write."""
    agent = yaml.safe_load((ROOT / "deploy/collector/agent.yaml").read_text(encoding="utf-8"))
    over = yaml.safe_load((FOLDER / "collector.yaml").read_text(encoding="utf-8"))

    assert over["exporters"].keys() == agent["exporters"].keys()
    for name, exporter in over["exporters"].items():
        assert exporter["sending_queue"] == {"storage": None}, name
    assert "file_storage" not in over["service"]["extensions"]


def test_the_collectors_image_is_the_proven_version_with_its_files() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    version = stack_tools.versions()["COLLECTOR_VERSION"]

    assert f"FROM otel/opentelemetry-collector-contrib:{version}\n" in text
    (copied,) = re.findall(r"^COPY (.+) (\S+)/$", text, re.MULTILINE)
    names = [Path(source).name for source in copied[0].split()]
    assert all((ROOT / "deploy" / source).is_file() for source in copied[0].split())
    (command,) = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    told = [word for word in json.loads(command) if word != "--config"]
    assert told == [f"{copied[1]}/{name}" for name in names]


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--failure-threshold", "style",
         FOLDER / "Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# --- filling it in --------------------------------------------------------------------------------


def test_what_is_missing_is_named_at_once() -> None:
    done = render(PROJECT="my-project-1")

    assert (done.returncode, done.stdout) == (2, "")
    for name in ("REGION", "TAG", "COLLECTOR_HOST"):
        assert f"{name} (" in done.stderr
    assert "IMAGE" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"PROJECT": "Mein Projekt"},
        {"COLLECTOR_HOST": "https://collector.internal"},
        {"COLLECTOR_HOST": "collector.internal:4317"},
        {"TAG": 'x"\n  evil: true'},
        {"IMAGE": "registry.example/agent:latest"},
        {"REGION": "Zürich"},
        {"NETWORK": "默认"},
    ],
)
def test_what_cannot_be_right_is_refused(wrong: dict[str, str]) -> None:
    done = render(**GIVEN | wrong)

    (name,) = wrong
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{name} (" in done.stderr
    assert "is not set" not in done.stderr


def test_a_project_and_an_image_of_ones_own() -> None:
    done = render(**GIVEN | {"IMAGE": "registry.example/team/agent"})

    images = re.findall(r"image: (\S+)", done.stdout)
    assert images == [
        "registry.example/team/agent:0123abc",
        "registry.example/team/agent:0123abc",
        "registry.example/team/agent-collector:0123abc",
    ]
    assert "${" not in done.stdout
