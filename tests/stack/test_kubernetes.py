"""deploy/k8s: its objects against Kubernetes' schemas, the standard "restricted", and each other.

kustomize builds each overlay as `kubectl apply -k` would; no cluster is asked.
"""

import os
import re
import subprocess
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from scripts import stack_tools
from service.settings import Settings
from spanloom import ports, semconv
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.trust import CANCELLED_GRACE_S
from tests.deploy import kubernetes as k8s
from tests.deploy.kubernetes import OVERLAYS, ROOT, Peer, Workload
from tests.deploy.test_compose import read_by_telemetry
from tests.service.test_settings import environment_name
from tests.stack.programs import binary

pytestmark = pytest.mark.stack

OURS = {
    "small": {"api", "retrieval", "offline-llm", "chat", "spanloom"},
    "production": {"api", "retrieval", "chat", "reap"},
}
COLLECTORS = {"collector-agent": "agent.yaml", "collector-gateway": "gateway.yaml"}
OLDEST, NEWEST = "1.32", "1.37"
DEFAULT = {name: field.default for name, field in Settings.model_fields.items()}
PORTS = {
    "api": {"http": DEFAULT["api_port"]},
    "retrieval": {"http": DEFAULT["retrieval_port"]},
    "offline-llm": {"http": DEFAULT["offline_llm_port"]},
    "chat": {"http": DEFAULT["chat_port"]},
    "spanloom": {
        "otlp-grpc": ports.OTLP_GRPC,
        "otlp-http": ports.OTLP_HTTP,
        "query": ports.QUERY_HTTP,
    },
    "reap": {"otlp-http": ports.REAP_OTLP_HTTP, "http": ports.REAP_HTTP},
    "collector-agent": {
        "otlp-grpc": ports.OTLP_GRPC,
        "otlp-http": ports.OTLP_HTTP,
        "metrics": ports.COLLECTOR_METRICS,
        "health": 13133,
    },
    "collector-gateway": {
        "otlp-grpc": ports.OTLP_GRPC,
        "metrics": ports.COLLECTOR_METRICS,
        "health": 13133,
    },
}
INTERNET = Peer(address="93.184.215.14")
CLUSTER_ADDRESS = Peer(address="10.4.0.7")
METADATA = Peer(address="169.254.169.254")
INGRESS = Peer((("app.kubernetes.io/name", "ingress-nginx"),), namespace="ingress-nginx")
PROMETHEUS = Peer((("app.kubernetes.io/name", "prometheus"),), namespace="observability")
STRANGER = Peer((("app.kubernetes.io/name", "stranger"),))
ELSEWHERE = Peer((("app.kubernetes.io/component", "agent"),), namespace="default")
DNS = Peer((("k8s-app", "kube-dns"),), namespace="kube-system")

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)", text)[1])  # type: ignore[index]


def mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit == "Gi" else 1)


# --- objects --------------------------------------------------------------------------------------


@overlays
def test_every_object_is_one_that_kubernetes_knows(overlay: str) -> None:
    """Strict: a field that the schema has not is a mistake."""
    objects = k8s.build(overlay)
    for each, version in product(objects, (OLDEST, NEWEST)):
        kubernetes_validate.validate(each, version, strict=True)
    broken = {**objects[0], "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="sepc"):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


@overlays
def test_everything_is_in_one_namespace_that_enforces_restricted(overlay: str) -> None:
    (namespace,) = k8s.kind(overlay, "Namespace").values()
    assert namespace["metadata"]["name"] == k8s.NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each for each in k8s.build(overlay) if each["kind"] != "Namespace"]
    assert {each["metadata"].get("namespace") for each in others} == {k8s.NAMESPACE}
    names = [(each["kind"], each["metadata"]["name"]) for each in others]
    assert len(names) == len(set(names))
    assert set(k8s.workloads(overlay)) == OURS[overlay] | (
        set(COLLECTORS) if overlay == "production" else set()
    )


@overlays
def test_no_secret_is_in_it(overlay: str) -> None:
    assert k8s.kind(overlay, "Secret") == {}
    for data in (each["data"] for each in k8s.kind(overlay, "ConfigMap").values()):
        assert not [name for name in data if re.search(r"KEY|PASSWORD|SECRET|TOKEN|DATABASE", name)]


@overlays
def test_images_are_ours_or_a_version_that_was_proven(overlay: str) -> None:
    proven = stack_tools.versions()["COLLECTOR_VERSION"]
    for name, workload in k8s.workloads(overlay).items():
        expected = "spanloom-chat:local" if name == "chat" else "spanloom:local"
        if name in COLLECTORS:
            expected = f"otel/opentelemetry-collector-contrib:{proven}"
        assert workload.container["image"] == expected


# --- pods -----------------------------------------------------------------------------------------


@overlays
def test_every_pod_is_restricted(overlay: str) -> None:
    for name, workload in k8s.workloads(overlay).items():
        pod = workload.pod
        assert k8s.violations(pod) == [], name
        # and more than the standard asks for
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert workload.container["securityContext"]["readOnlyRootFilesystem"] is True, name
        assert pod["securityContext"]["runAsUser"] == (10001 if name in COLLECTORS else 1000)


def test_a_pod_that_is_not_restricted_is_found_out() -> None:
    careless = {
        "hostNetwork": True,
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}],
    }
    assert k8s.violations(careless) == [
        *("hostNetwork", "volume hostPath", "hostPort 1", "allowPrivilegeEscalation"),
        *("runAsNonRoot", "seccompProfile", "capabilities.drop"),
    ]


@overlays
def test_ports_are_those_of_the_code(overlay: str) -> None:
    for name, workload in k8s.workloads(overlay).items():
        assert workload.ports == PORTS[name]


@overlays
def test_probes_ask_where_somebody_answers(overlay: str) -> None:
    paths = {"chat": {"/_stcore/health"}, **{name: {"/"} for name in COLLECTORS}}
    for name, workload in k8s.workloads(overlay).items():
        asked = {}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            request = workload.container[probe]["httpGet"]
            assert request["port"] in workload.ports, name
            asked[probe] = request["path"]
        startup = workload.container["startupProbe"]
        # a model may take 30 s to load
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 60, name
        if name == "api":
            # only before its first request does a pod depend on others
            assert asked == {
                "startupProbe": "/ready",
                "readinessProbe": "/health",
                "livenessProbe": "/health",
            }
        else:
            assert set(asked.values()) == paths.get(name, {"/health"}), name


@overlays
def test_a_pod_has_the_time_to_end_in_order(overlay: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    grace = seconds(re.search(r"AGENT_SHUTDOWN_GRACE_S=(\d+)", dockerfile)[1])  # type: ignore[index]
    flush = CANCELLED_GRACE_S + TelemetrySettings().shutdown_timeout_s
    for name in ("api", "retrieval"):
        workload = k8s.workloads(overlay)[name]
        before = workload.container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert workload.pod["terminationGracePeriodSeconds"] > before + grace + flush
    assert grace > DEFAULT["deadline_s"]


@overlays
def test_everyone_has_resources_and_room_for_what_it_writes(overlay: str) -> None:
    for name, workload in k8s.workloads(overlay).items():
        given = workload.container["resources"]
        assert set(given["requests"]) == {"cpu", "memory", "ephemeral-storage"}, name
        assert set(given["limits"]) == {"memory", "ephemeral-storage"}, name
        on_disk = sum(
            mebibytes(volume["emptyDir"]["sizeLimit"])
            for volume in workload.pod.get("volumes", [])
            if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"
        )
        assert mebibytes(given["limits"]["ephemeral-storage"]) > on_disk, name


@overlays
def test_volumes_and_mounts_belong_together(overlay: str) -> None:
    claims = k8s.kind(overlay, "PersistentVolumeClaim")
    for name, workload in k8s.workloads(overlay).items():
        templates = {
            each["metadata"]["name"] for each in workload.spec.get("volumeClaimTemplates", [])
        }
        volumes = {each["name"]: each for each in workload.pod.get("volumes", [])}
        assert not templates & set(volumes), name
        mounted = {each["name"] for each in workload.container["volumeMounts"]}
        assert mounted == templates | set(volumes), name
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims
                assert workload.spec["replicas"] == 1
                assert workload.spec["strategy"] == {"type": "Recreate"}


# --- settings -------------------------------------------------------------------------------------


@overlays
def test_every_variable_of_ours_is_one_that_the_code_reads(overlay: str) -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    known |= {f"AGENT_{field.upper()}" for field in Settings.model_fields} | read_by_telemetry()
    for name in OURS[overlay]:
        workload = k8s.workloads(overlay)[name]
        given = k8s.environment(overlay, workload)
        fields = {key for key, value in given.items() if value.startswith("field:")}
        assert set(given) - fields <= known, name
        # what a pod says of itself is used: $(NAME) of a variable given before it
        order = [each["name"] for each in workload.container["env"]]
        for used in re.findall(r"\$\((\w+)\)", given["OTEL_RESOURCE_ATTRIBUTES"]):
            assert order.index(used) < order.index("OTEL_RESOURCE_ATTRIBUTES")


@overlays
def test_the_settings_are_taken_as_they_are_meant(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in list(os.environ):
        if variable.startswith(("AGENT_", "OPENAI_", "ANTHROPIC_", "DATABASE_")):
            monkeypatch.delenv(variable)
    pods = k8s.workloads(overlay)
    for name in OURS[overlay] & {"api", "retrieval", "offline-llm", "chat"}:
        given = k8s.environment(overlay, pods[name])
        plain = {k: v for k, v in given.items() if not v.startswith(("secret:", "field:"))}
        with monkeypatch.context() as environment:
            for key, value in plain.items():
                environment.setenv(key, value)
            service = Settings(_env_file=None)
        telemetry = TelemetrySettings.from_env(given)
        assert telemetry.problems == ()
        assert telemetry.spool_dir is not None
        assert service.workers == 1
        if name in {"retrieval", "offline-llm"}:
            assert telemetry.trust == ("all",)
        if name == "api":
            # strangers reach it
            assert telemetry.trust == ("none",)
            assert urlsplit(str(service.retrieval_url)).hostname in telemetry.propagate_to
            if overlay == "small":
                assert urlsplit(service.offline_llm_base_url).hostname in telemetry.propagate_to


def test_several_replicas_share_their_sessions_or_do_not_start() -> None:
    api = k8s.workloads("production")["api"]
    (sessions,) = [each for each in api.container["env"] if each["name"] == "DATABASE_URL"]
    assert sessions["valueFrom"]["secretKeyRef"]["optional"] is False
    assert k8s.workloads("small")["api"].spec["replicas"] == 1


@pytest.mark.parametrize(("name", "file"), COLLECTORS.items())
def test_collectors_run_the_committed_files_and_take_these_variables(
    name: str, file: str, tmp_path: Path
) -> None:
    """The real Collector reads its file with the variables of its pod."""
    workload = k8s.workloads("production")[name]
    text = (ROOT / "deploy/collector" / file).read_text(encoding="utf-8")
    (config,) = [each for each in workload.pod["volumes"] if each["name"] == "config"]
    assert k8s.kind("production", "ConfigMap")[config["configMap"]["name"]]["data"] == {
        "collector.yaml": text
    }
    (mount,) = [each for each in workload.container["volumeMounts"] if each["name"] == "config"]
    assert workload.container["args"] == [f"--config={mount['mountPath']}/collector.yaml"]

    given = k8s.environment("production", workload)
    backends = k8s.kind("production", "ConfigMap")
    (shared,) = [data["data"] for key, data in backends.items() if key.startswith("backends-")]
    for variable in given.keys() - shared.keys() - {"GOMEMLIMIT"}:
        assert f"${{env:{variable}" in text, variable
    readme = (ROOT / "deploy/collector/README.md").read_text(encoding="utf-8")
    assert all(f"| `{variable}` |" in readme for variable in shared)
    # another pod cannot reach loopback
    for variable, default in re.findall(r"\$\{env:(\w+):-([^}]*)\}", text):
        if "127.0.0.1" in default:
            assert variable in given, variable
            assert "127.0.0.1" not in given[variable]

    (queue,) = [each for each in workload.container["volumeMounts"] if each["name"] == "queue"]
    assert given["COLLECTOR_QUEUE_DIR"].startswith(queue["mountPath"] + "/")
    limit = int(re.search(r"COLLECTOR_MEMORY_LIMIT_MIB:-(\d+)", text)[1])  # type: ignore[index]
    assert given["GOMEMLIMIT"] == f"{round(limit * 0.8)}MiB"
    assert mebibytes(workload.container["resources"]["limits"]["memory"]) > limit * 1.2

    done = subprocess.run(
        [binary("otelcol"), "validate", f"--config={ROOT / 'deploy/collector' / file}"],
        env={**given, "COLLECTOR_QUEUE_DIR": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_agents_queue_fits_on_its_volume() -> None:
    agent = k8s.workloads("production")["collector-agent"]
    text = (ROOT / "deploy/collector/agent.yaml").read_text(encoding="utf-8")
    sizes = [int(size) for size in re.findall(r"queue_size: (?:\$\{env:\w+:-)?(\d+)", text)]
    (room,) = [each["emptyDir"] for each in agent.pod["volumes"] if each["name"] == "queue"]
    assert mebibytes(room["sizeLimit"]) << 20 > sum(sizes) + max(sizes)


# --- who reaches whom -----------------------------------------------------------------------------


@overlays
def test_every_service_leads_to_a_pod_that_listens_there(overlay: str) -> None:
    pods = k8s.workloads(overlay)
    for name, service in k8s.kind(overlay, "Service").items():
        selector = {"matchLabels": service["spec"]["selector"]}
        (workload,) = [each for each in pods.values() if k8s.selects(selector, each.labels)]
        for port in service["spec"]["ports"]:
            assert workload.ports[port["targetPort"]] == port["port"], name
    for workload in pods.values():
        assert k8s.selects(workload.spec["selector"], workload.labels)
        if workload.kind == "StatefulSet":
            assert workload.spec["serviceName"] in k8s.kind(overlay, "Service")


def called(overlay: str, workload: Workload) -> set[tuple[str, int]]:
    """Each HOST:PORT that a container is told of, listening addresses left out."""
    values = [*k8s.environment(overlay, workload).values(), *workload.container.get("command", [])]
    text = "\n".join(values)
    found = re.findall(r"(?://|^|=|\s)([a-z][a-z0-9.-]*):(\d{2,5})\b", text, re.MULTILINE)
    found += re.findall(r'hostname: ([\w-]+), port: "(\d+)"', text)
    if workload.name == "api" and overlay == "small":
        found.append((k8s.environment(overlay, workload)["AGENT_OFFLINE_LLM_HOST"], "8002"))
    return {(host, int(port)) for host, port in found}


@overlays
def test_everyone_may_call_whom_it_is_told_of_and_finds_it(overlay: str) -> None:
    seen = set()
    for name, workload in k8s.workloads(overlay).items():
        assert k8s.allowed(overlay, workload.peer, DNS, 53, "UDP")
        for host, port in called(overlay, workload):
            if name != "api" and (host, port) == ("retrieval", 8001):
                continue  # in everybody's settings, used by the API
            if host.endswith(".observability"):
                there = Peer(namespace="observability")
                assert k8s.allowed(overlay, workload.peer, there, port), (name, host)
                seen.add((name, host.split(".")[0], port))
                continue
            targets = list(k8s.behind(overlay, host, port))
            assert targets, f"{name}: no Service {host}:{port}"
            for target, number in targets:
                assert k8s.allowed(overlay, workload.peer, target.peer, number), (name, host)
                seen.add((name, target.name, number))
    telemetry = "spanloom" if overlay == "small" else "collector-agent"
    expected = {
        ("api", "retrieval", 8001),
        ("api", telemetry, ports.OTLP_HTTP),
        ("retrieval", telemetry, ports.OTLP_HTTP),
        ("chat", "api", 8000),
    }
    if overlay == "small":
        expected |= {("api", "offline-llm", 8002), ("offline-llm", "spanloom", ports.OTLP_HTTP)}
    else:
        expected |= {
            ("collector-agent", "collector-gateway", ports.OTLP_GRPC),
            ("collector-agent", "reap", ports.REAP_OTLP_HTTP),
            ("collector-agent", "loki", ports.LOKI),
            ("collector-agent", "prometheus", ports.PROMETHEUS),
            ("collector-gateway", "jaeger-collector", ports.OTLP_GRPC),
            ("collector-gateway", "prometheus", ports.PROMETHEUS),
            ("reap", "collector-agent", ports.OTLP_HTTP),
        }
    assert expected <= seen


@overlays
def test_nobody_reaches_what_it_has_no_business_with(overlay: str) -> None:
    pods = k8s.workloads(overlay)
    for target in pods.values():
        for number in target.ports.values():
            for outside in (STRANGER, ELSEWHERE, CLUSTER_ADDRESS, INTERNET):
                assert not k8s.allowed(overlay, outside, target.peer, number), target.name
    for name, port in (("retrieval", 8001), ("collector-gateway", ports.OTLP_GRPC)):
        if name in pods:
            assert not k8s.allowed(overlay, pods["chat"].peer, pods[name].peer, port)
    for name, workload in pods.items():
        for place in (CLUSTER_ADDRESS, METADATA):
            assert not k8s.allowed(overlay, workload.peer, place, 80), name
            assert not k8s.allowed(overlay, workload.peer, place, 443), name
        reaches_provider = k8s.allowed(overlay, workload.peer, INTERNET, 443)
        assert reaches_provider is (name == "api" and overlay == "production")
        database = k8s.allowed(overlay, workload.peer, CLUSTER_ADDRESS, 5432)
        assert database is (name == "api" and overlay == "production")


def test_from_outside_callers_reach_chat_and_prometheus_the_metrics() -> None:
    pods = k8s.workloads("production")
    assert k8s.allowed("production", INGRESS, pods["api"].peer, 8000)
    for name, workload in pods.items():
        for number in workload.ports.values():
            if (name, number) != ("api", 8000):
                assert not k8s.allowed("production", INGRESS, workload.peer, number)
    for name, number in (
        ("api", 8000),
        ("collector-agent", ports.COLLECTOR_METRICS),
        ("collector-gateway", ports.COLLECTOR_METRICS),
        ("reap", ports.REAP_HTTP),
    ):
        assert k8s.allowed("production", PROMETHEUS, pods[name].peer, number), name
        grafana = Peer((("app.kubernetes.io/name", "grafana"),), namespace="observability")
        assert not k8s.allowed("production", grafana, pods[name].peer, number), name


def test_the_ingress_shows_the_chat_endpoints_alone_and_waits_for_the_deadline() -> None:
    (ingress,) = k8s.kind("production", "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["path"] == "/chat"
    service = k8s.kind("production", "Service")[path["backend"]["service"]["name"]]
    names = {each["name"] for each in service["spec"]["ports"]}
    assert path["backend"]["service"]["port"]["name"] in names
    assert [each["hosts"] for each in ingress["spec"]["tls"]] == [[rule["host"]]]
    told = ingress["metadata"]["annotations"]
    assert int(told["nginx.ingress.kubernetes.io/proxy-read-timeout"]) > DEFAULT["deadline_s"]
    assert told["nginx.ingress.kubernetes.io/proxy-body-size"] == (
        f"{DEFAULT['max_body_bytes'] // 1024}k"
    )


# --- numbers --------------------------------------------------------------------------------------


def test_the_autoscaler_decides_and_nobody_else() -> None:
    (scaler,) = k8s.kind("production", "HorizontalPodAutoscaler").values()
    target = k8s.workloads("production")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert target.kind == scaler["spec"]["scaleTargetRef"]["kind"]
    assert "replicas" not in target.spec
    assert "cpu" in target.container["resources"]["requests"], "Utilization is of the request"
    kinds = {each["type"]: each for each in scaler["spec"]["metrics"]}
    assert set(kinds) == {"Resource", "Pods"}
    adapter = yaml.safe_load((ROOT / "deploy/k8s/prometheus/adapter.yaml").read_text("utf-8"))
    (rule,) = adapter["rules"]
    metric = kinds["Pods"]["pods"]["metric"]["name"]
    assert metric == rule["name"]["as"] == semconv.PROM_ACTIVE_REQUESTS
    assert re.fullmatch(rule["name"]["matches"], metric)
    assert rule["seriesQuery"].startswith(metric + "{")
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


@overlays
def test_a_budget_is_for_what_has_more_than_one(overlay: str) -> None:
    pods = k8s.workloads(overlay)
    replicated = {name for name, each in pods.items() if each.spec.get("replicas", 2) > 1}
    replicated -= {name for name, each in pods.items() if each.kind == "DaemonSet"}
    covered = set()
    for budget in k8s.kind(overlay, "PodDisruptionBudget").values():
        (workload,) = [
            each for each in pods.values() if k8s.selects(budget["spec"]["selector"], each.labels)
        ]
        assert budget["spec"]["maxUnavailable"] == 1
        covered.add(workload.name)
    assert covered == replicated


@overlays
def test_what_keeps_state_alone_is_one(overlay: str) -> None:
    for name in {"reap", "spanloom"} & OURS[overlay]:
        workload = k8s.workloads(overlay)[name]
        assert (workload.kind, workload.spec["replicas"]) == ("StatefulSet", 1)


# --- Prometheus in the cluster --------------------------------------------------------------------


def test_prometheus_reads_the_scrape_file_and_the_adapters_query(tmp_path: Path) -> None:
    """By promtool: the file beside ours, and the query with what the adapter puts in."""
    folder = ROOT / "deploy/k8s/prometheus"
    main = tmp_path / "prometheus.yml"
    main.write_text(f"scrape_config_files: [{folder / 'scrape.yaml'}]\n", encoding="utf-8")
    (rule,) = yaml.safe_load((folder / "adapter.yaml").read_text("utf-8"))["rules"]
    query = rule["metricsQuery"].replace("<<.Series>>", rule["name"]["as"])
    query = query.replace("<<.LabelMatchers>>", 'namespace="spanloom",pod=~"api-1|api-2"')
    query = query.replace("<<.GroupBy>>", "pod")
    rules = tmp_path / "rules.yml"
    rules.write_text(
        yaml.safe_dump(
            {"groups": [{"name": "adapter", "rules": [{"record": "asked", "expr": query}]}]}
        ),
        encoding="utf-8",
    )
    series = [
        {"series": f'agent_active_requests{{namespace="spanloom",pod="{pod}"}}', "values": values}
        for pod, values in (("api-1", "4x10"), ("api-2", "8 12x10"), ("other", "99x10"))
    ]
    test = {
        "rule_files": [str(rules)],
        "tests": [
            {
                "interval": "30s",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "1m",
                        "exp_samples": [
                            {"labels": '{pod="api-1"}', "value": 4},
                            {"labels": '{pod="api-2"}', "value": 12},
                        ],
                    }
                ],
            }
        ],
    }
    tests = tmp_path / "test.yml"
    tests.write_text(yaml.safe_dump(test), encoding="utf-8")
    for arguments in (
        ["check", "config", main],
        ["check", "rules", rules],
        ["test", "rules", tests],
    ):
        done = subprocess.run(
            [binary("promtool"), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_scraped_are_the_pods_that_have_metrics_by_the_jobs_of_the_rules() -> None:
    """Relabelling as Prometheus does it, over the pods of the overlay."""
    scrape = yaml.safe_load((ROOT / "deploy/k8s/prometheus/scrape.yaml").read_text("utf-8"))
    found: dict[str, set[tuple[str, int]]] = {}
    for config, workload in product(scrape["scrape_configs"], k8s.workloads("production").values()):
        (discovery,) = config["kubernetes_sd_configs"]
        assert (discovery["role"], discovery["namespaces"]["names"]) == ("pod", [k8s.NAMESPACE])
        for port, number in workload.ports.items():
            labels = {
                "job": config["job_name"],
                "__meta_kubernetes_namespace": k8s.NAMESPACE,
                "__meta_kubernetes_pod_name": f"{workload.name}-0",
                "__meta_kubernetes_pod_container_port_name": port,
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": workload.name,
            }
            if k8s.relabelled(labels, config["relabel_configs"]):
                assert (labels["namespace"], labels["pod"]) == ("spanloom", f"{workload.name}-0")
                found.setdefault(labels["job"], set()).add((workload.name, number))
                if labels["job"] == "agent-api":
                    assert labels["service_name"] == "agent-api"
    assert found == {
        "agent-api": {("api", 8000)},
        "otel-collector": {
            ("collector-agent", ports.COLLECTOR_METRICS),
            ("collector-gateway", ports.COLLECTOR_METRICS),
        },
        "spanloom-reap": {("reap", ports.REAP_HTTP)},
    }


def test_the_readme_names_the_versions_it_was_checked_with() -> None:
    readme = (ROOT / "deploy/k8s/README.md").read_text(encoding="utf-8")
    assert f"Kubernetes {OLDEST} and {NEWEST}" in readme
    assert f"Kubernetes {OLDEST} or newer" in readme
