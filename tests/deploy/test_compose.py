"""docker-compose.yml: what it starts, what each part may do, and that its parts find each other."""

import ast
import inspect
import ipaddress
import re
from itertools import product
from typing import Any

import pytest
import yaml
from opentelemetry.sdk import environment_variables as sdk

from scripts import stack_tools
from service.settings import Settings
from spanloom import ports
from spanloom.telemetry import pricing, settings
from spanloom.telemetry.trust import CANCELLED_GRACE_S
from tests.deploy import compose
from tests.deploy.compose import FULL, ROOT, SMALL, MissingError
from tests.deploy.dockerfile import stages
from tests.service.test_settings import environment_name
from tests.stack.programs import prometheus_flags

EVERYTHING = compose.services(*compose.PROFILES)
OURS = {"api", "retrieval", "offline-llm", "chat", "spanloom", "reap"}
PROGRAMS = {"collector", "jaeger", "prometheus", "loki", "grafana", "postgres"}
ONCE = {"prepare"}
DEFAULT = {name: field.default for name, field in Settings.model_fields.items()}

LISTENS = {
    "api": {DEFAULT["api_port"]},
    "retrieval": {DEFAULT["retrieval_port"]},
    "offline-llm": {DEFAULT["offline_llm_port"]},
    "chat": {DEFAULT["chat_port"]},
    "spanloom": {ports.OTLP_GRPC, ports.OTLP_HTTP, ports.QUERY_HTTP},
    "collector": {ports.OTLP_GRPC, ports.OTLP_HTTP, ports.COLLECTOR_METRICS},
    "jaeger": {ports.JAEGER_OTLP_GRPC, ports.QUERY_HTTP, ports.JAEGER_METRICS},
    "prometheus": {ports.PROMETHEUS},
    "loki": {ports.LOKI},
    "grafana": {ports.GRAFANA},
    "reap": {ports.REAP_OTLP_HTTP, ports.REAP_HTTP},
    "postgres": {ports.POSTGRES},
}
"""Where each container can be reached by others."""


def every(names: set[str]) -> Any:
    return pytest.mark.parametrize("name", sorted(names))


def test_the_profiles_are_what_the_head_of_the_file_says() -> None:
    always = {"api", "retrieval", "postgres"}
    assert set(compose.services()) == always
    assert set(compose.services("offline")) == always | {"offline-llm"}
    assert set(compose.services("chat")) == always | {"chat"}
    assert set(compose.services("small")) == always | {"spanloom"}
    full = {"collector", "jaeger", "prometheus", "loki", "grafana", "reap", "prepare"}
    assert set(compose.services("full")) == always | full
    assert set(EVERYTHING) == OURS | PROGRAMS | ONCE


def test_small_and_full_cannot_be_started_together() -> None:
    """Both would be `telemetry`, and each would get half. The engine refuses the second port."""

    def taken(profile: str) -> set[str]:
        services = compose.services(profile).values()
        return {port for service in services for _, port, _ in compose.published(service)}

    small, full = taken("small"), taken("full")
    assert {str(ports.OTLP_HTTP), str(ports.QUERY_HTTP)} <= small & full


# --- versions -------------------------------------------------------------------------------------


def test_each_version_is_written_once_and_is_the_one_that_was_proven() -> None:
    """No tag in the file itself; the programs' are those of the binaries of `make test-stack`."""
    proven = {tool.name: tool.version for tool in stack_tools.tools()}
    raw = yaml.safe_load(compose.FILE.read_text(encoding="utf-8"))["services"]
    for name in PROGRAMS:
        assert re.fullmatch(r"[\w./-]+:v?\$\{[A-Z]+_VERSION:\?.+\}", raw[name]["image"]), name

    def tag(name: str) -> str:
        return str(EVERYTHING[name]["image"]).rpartition(":")[2]

    assert tag("collector") == proven["otelcol"]
    assert tag("jaeger") == proven["jaeger"]
    assert tag("prometheus") == f"v{proven['prometheus']}"
    assert tag("loki") == proven["loki"]
    assert re.fullmatch(r"\d+\.\d+\.\d+-pg16-\w+", tag("postgres"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", tag("grafana"))


def test_without_the_versions_or_a_password_it_says_what_to_do() -> None:
    with pytest.raises(MissingError, match=r"--env-file deploy/versions\.env --env-file \.env"):
        compose.services("full", JAEGER_VERSION="")
    for name in compose.PASSWORDS:
        with pytest.raises(MissingError, match=rf"long random {name} into \.env, see \.env\.exam"):
            compose.services(**{name: ""})


@every(OURS | ONCE)
def test_our_containers_are_one_build(name: str) -> None:
    """Of a stage that the Dockerfile has; a deploy by tag moves them all."""
    tagged = compose.services(*compose.PROFILES, AGENT_IMAGE="registry.example/a", AGENT_TAG="abc")
    target = "chat" if name == "chat" else "agent"
    assert EVERYTHING[name]["build"] == {"context": ".", "target": target}
    assert target in stages()
    suffix = "-chat" if name == "chat" else ""
    assert tagged[name]["image"] == f"registry.example/a{suffix}:abc"


# --- settings -------------------------------------------------------------------------------------


def test_every_setting_of_the_service_reaches_it() -> None:
    """What .env may say passes through, but for addresses and folders, which compose decides."""
    shared = yaml.safe_load(compose.FILE.read_text(encoding="utf-8"))["x-settings"]
    decided = {
        *("AGENT_API_HOST", "AGENT_API_PORT", "AGENT_RETRIEVAL_HOST", "AGENT_RETRIEVAL_PORT"),
        *("AGENT_RETRIEVAL_URL", "AGENT_OFFLINE_LLM_HOST", "AGENT_OFFLINE_LLM_PORT"),
        *("AGENT_CHAT_HOST", "AGENT_CHAT_PORT", "AGENT_CHAT_API_URL", "AGENT_DATA_DIR"),
        *("VECTOR_STORE_PATH", "AGENT_CORPUS_PATH", "DATABASE_URL", "AGENT_REVISION"),
    }
    names = {environment_name(field) for field in Settings.model_fields}
    assert decided <= names
    assert names - decided == {name for name in shared if name in names and shared[name] is None}
    # the API is told where its own sessions are, and .env can say otherwise
    (here,) = (service["DATABASE_URL"] for service in [compose.environment(EVERYTHING["api"])])
    assert here == "postgresql://agent@postgres:5432/agent"
    elsewhere = compose.services(DATABASE_URL="sqlite:////data/x.sqlite")["api"]
    assert compose.environment(elsewhere)["DATABASE_URL"] == "sqlite:////data/x.sqlite"


def read_by_telemetry() -> set[str]:
    """Names of variables in the telemetry library's own source and in the SDK it sets up."""
    tree = ast.parse(inspect.getsource(settings))
    ours = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"(SPANLOOM|OTEL)_[A-Z_]+", node.value)
    }
    return {
        *ours,
        pricing.PRICES_VARIABLE,
        *(name for name in vars(sdk) if name.startswith("OTEL_")),
    }


@every(OURS)
def test_every_variable_of_ours_is_one_that_the_code_reads(name: str) -> None:
    known = {environment_name(field) for field in Settings.model_fields}
    known |= {f"AGENT_{field.upper()}" for field in Settings.model_fields}
    known |= read_by_telemetry() | {"FORWARDED_ALLOW_IPS", "PGPASSWORD"}

    assert set(EVERYTHING[name].get("environment", {})) <= known


@every({"collector", "jaeger", "loki"})
def test_every_variable_of_a_program_stands_in_its_file(name: str) -> None:
    service = EVERYTHING[name]
    (file,) = (m.source for m in compose.mounts(service) if m.source.endswith(".yaml"))
    text = (ROOT / file).read_text(encoding="utf-8")
    given = compose.environment(service)
    beside = {"GOMEMLIMIT", "OTEL_TRACES_SAMPLER"}  # read by Go and by Jaeger's SDK

    for variable in given.keys() - beside:
        assert re.search(rf"\$\{{(env:)?{variable}[:}}]", text), variable
    # Another container cannot reach loopback, and nothing outlives the container but volumes.
    inside = {"JAEGER_OTLP_HTTP_LISTEN", "JAEGER_QUERY_GRPC_LISTEN", "JAEGER_HEALTH_LISTEN"}
    for variable, default in re.findall(r"\$\{(?:env:)?(\w+):-([^}]*)\}", text):
        if "127.0.0.1" in default and variable not in inside:
            assert "127.0.0.1" not in given[variable], variable
        if default.startswith("var/") or default.endswith("ui.json"):
            assert any(given[variable].startswith(m.target) for m in compose.mounts(service))


def test_grafana_gets_what_its_provisioning_asks_for() -> None:
    given = compose.environment(EVERYTHING["grafana"])
    asked = set()
    for file in (ROOT / "grafana/provisioning").rglob("*.yaml"):
        lines = file.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
        asked |= set(re.findall(r"(?<!\$)\$\{([A-Z_]+)\}", code))

    assert asked - given.keys() == set()
    assert all(name in asked or name.startswith("GF_") for name in given)
    on_one_host = (ROOT / "grafana/grafana.env").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)=", on_one_host, re.MULTILINE)) <= given.keys()
    folders = {mount.target for mount in compose.mounts(EVERYTHING["grafana"])}
    assert {given["SPANLOOM_DASHBOARDS"], given["GF_PATHS_PROVISIONING"]} <= folders


def test_prometheus_runs_with_the_flags_its_file_asks_for() -> None:
    given = set(EVERYTHING["prometheus"]["command"])
    assert set(prometheus_flags()) <= given
    assert f"--web.listen-address=0.0.0.0:{ports.PROMETHEUS}" in given


def test_env_example_names_every_variable_of_the_file() -> None:
    """But for the versions, which are not an operator's to choose, and deploy's own tag."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name, forms in compose.references().items():
        if name in stack_tools.versions():
            continue
        line = re.search(rf"^#?{name}=(.*)$", example, re.MULTILINE)
        assert line, name
        assert not (name in compose.PASSWORDS and line[1]), f"{name} has a value"
        # a default that stands on another variable is written out with that one's
        defaults = {compose.expanded(form[2:]) for form in forms if form.startswith(":-")}
        if "PORT" not in name and defaults:
            assert line[1] in {"", *defaults}, name


def test_no_secret_has_a_value_in_the_file() -> None:
    text = compose.FILE.read_text(encoding="utf-8")
    for name, value in re.findall(
        r"^ +(\w*(?:PASSWORD|KEY|TOKEN|SECRET)\w*):(.*)$", text, re.MULTILINE
    ):
        assert value.strip() == "" or re.match(r" \$\{\w+_PASSWORD:\?", value), name


# --- who finds whom -------------------------------------------------------------------------------


def addresses(text: str) -> set[tuple[str, int]]:
    """Each HOST:PORT of a value, listening addresses and loopback left out."""
    found = re.findall(r"(?:^|//|@|[ \"'=\[])([a-z][a-z0-9.-]*):(\d{2,5})\b", text)
    return {(host, int(port)) for host, port in found}


@pytest.mark.parametrize("profiles", [FULL, SMALL], ids=["full", "small"])
def test_every_address_leads_to_a_container_that_listens_there(profiles: tuple[str, ...]) -> None:
    services = compose.services(*profiles)
    seen = set()
    for name, service in services.items():
        values = [*compose.environment(service).values(), *map(str, service.get("command", []))]
        for mount in compose.mounts(service):
            if mount.source.endswith("targets"):
                values += [file.read_text("utf-8") for file in (ROOT / mount.source).iterdir()]
        hosts = compose.reachable(services, name)
        for value in values:
            for host, port in addresses(value):
                assert host in hosts, f"{name} cannot reach {host}: no network with it"
                assert port in LISTENS[hosts[host]], f"{name}: nothing of {host} is at {port}"
                seen.add((name, hosts[host], port))
    telemetry = "collector" if "full" in profiles else "spanloom"
    assert {
        ("api", "retrieval", 8001),
        ("api", "postgres", ports.POSTGRES),
        ("api", telemetry, ports.OTLP_HTTP),
        ("chat", "api", 8000),
    } <= seen
    if "full" in profiles:
        assert {
            ("collector", "jaeger", ports.JAEGER_OTLP_GRPC),
            ("collector", "prometheus", ports.PROMETHEUS),
            ("collector", "loki", ports.LOKI),
            ("collector", "reap", ports.REAP_OTLP_HTTP),
            ("reap", "collector", ports.OTLP_HTTP),
            ("grafana", "jaeger", ports.QUERY_HTTP),
            ("grafana", "loki", ports.LOKI),
            ("grafana", "prometheus", ports.PROMETHEUS),
            ("jaeger", "prometheus", ports.PROMETHEUS),
            ("prometheus", "api", 8000),
            ("prometheus", "reap", ports.REAP_HTTP),
        } <= seen


def test_the_offline_llm_is_where_the_api_looks_for_it() -> None:
    given = compose.environment(EVERYTHING["api"])
    api = Settings(_env_file=None, offline_llm_host=given["AGENT_OFFLINE_LLM_HOST"])
    assert addresses(api.offline_llm_base_url) == {("offline-llm", 8002)}
    assert "offline-llm" in compose.reachable(EVERYTHING, "api")


def test_traces_go_on_between_our_containers_and_begin_anew_for_the_host() -> None:
    """Containers may name a parent span; the gateway, as which the host comes, may not."""
    network = compose.project(*FULL)["networks"]["agent"]["ipam"]["config"][0]
    for name in ("api", "retrieval", "offline-llm"):
        given = compose.environment(EVERYTHING[name])
        read = settings.TelemetrySettings.from_env(given)
        assert read.problems == ()
        assert read.trust == (network["ip_range"],)
        assert {"api", "retrieval", "offline-llm"} <= set(read.propagate_to)
    trusted = ipaddress.ip_network(network["ip_range"])
    assert trusted.subnet_of(ipaddress.ip_network(network["subnet"]))  # type: ignore[arg-type]
    assert ipaddress.ip_address(network["gateway"]) not in trusted


def test_scraped_is_who_is_scraped_on_one_host() -> None:
    """The same files, jobs and labels, so that every rule and dashboard finds its series."""

    def jobs(folder: str) -> dict[str, list[Any]]:
        return {
            file.name: [group.get("labels") for group in yaml.safe_load(file.read_text("utf-8"))]
            for file in (ROOT / folder).iterdir()
        }

    assert jobs("deploy/compose/targets") == jobs("prometheus/targets")


# --- what each part may do ------------------------------------------------------------------------


def test_the_host_reaches_what_people_open_and_otlp_on_loopback_only() -> None:
    found = {
        name: compose.published(service)
        for name, service in EVERYTHING.items()
        if compose.published(service)
    }
    needed = {
        "api": {DEFAULT["api_port"]},
        "chat": {DEFAULT["chat_port"]},
        "spanloom": {ports.OTLP_HTTP, ports.QUERY_HTTP},
        "collector": {ports.OTLP_GRPC, ports.OTLP_HTTP},
        "jaeger": {ports.QUERY_HTTP},
        "grafana": {ports.GRAFANA},
    }
    assert {name: {int(target) for _, _, target in each} for name, each in found.items()} == needed
    for each in found.values():
        for host, port, target in each:
            assert (host, port) == ("127.0.0.1", target)
    assert compose.project()["networks"]["sessions"] == {"internal": True}


@every(OURS | PROGRAMS | ONCE)
def test_nobody_may_more_than_it_needs(name: str) -> None:
    service = EVERYTHING[name]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "prepare" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) is (name != "grafana")
    assert "privileged" not in service
    if name in PROGRAMS:
        assert not service["user"].startswith("0:")
    elif name in OURS:
        assert "user" not in service  # the image's: 1000
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"]["max-size"]


@every(OURS | PROGRAMS | ONCE)
def test_everything_comes_back_and_tells_how_it_is(name: str) -> None:
    service = EVERYTHING[name]
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    check = service.get("healthcheck")
    if name == "collector":
        assert check is None
        text = compose.FILE.read_text(encoding="utf-8")
        assert "No healthcheck: the image is one binary" in text
    elif name in ONCE:
        assert check == {"disable": True}
    else:
        assert check["test"][0] == "CMD"
        assert check["start_period"] == "45s"
        asked = re.search(r"127\.0\.0\.1:(\d+)", " ".join(check["test"]))
        if asked:
            assert int(asked[1]) in LISTENS[name] | {ports.JAEGER_HEALTH}, name


def test_the_service_waits_for_what_it_needs_and_never_for_telemetry() -> None:
    services = compose.services(*FULL)

    def needed(name: str) -> set[str]:
        found: set[str] = set()
        for other in services[name].get("depends_on", {}):
            found |= {other, *(needed(other) if other in services else ())}
        return found

    assert needed("api") == {"postgres", "retrieval", "offline-llm"}
    assert needed("chat") == {"api", *needed("api")}
    for name in ("api", "chat"):
        waits = services[name]["depends_on"].values()
        assert all(each["condition"] == "service_healthy" for each in waits)
    # without its profile it is not there to be waited for
    assert services["api"]["depends_on"]["offline-llm"]["required"] is False
    once = {"condition": "service_completed_successfully"}
    writers = {
        name
        for name, service in services.items()
        for volume in compose.mounts(service)
        if volume.source in {m.source for m in compose.mounts(services["prepare"])}
    }
    for name in writers - ONCE:
        assert services[name]["depends_on"]["prepare"] == once
        assert services[name]["user"] in services["prepare"]["command"]


@every(OURS)
def test_stopping_leaves_time_to_drain_and_flush(name: str) -> None:
    (grace,) = re.findall(r"AGENT_SHUTDOWN_GRACE_S=(\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
    flush = CANCELLED_GRACE_S + settings.TelemetrySettings().shutdown_timeout_s
    assert float(EVERYTHING[name]["stop_grace_period"].removesuffix("s")) >= int(grace) + flush


def memory_mib(service: dict[str, Any]) -> int:
    return int(service["deploy"]["resources"]["limits"]["memory"].removesuffix("M"))


@pytest.mark.parametrize(("profiles", "gib"), [(SMALL, 4), (FULL, 8)], ids=["small", "full"])
def test_the_limits_fit_the_host_that_the_guide_names(profiles: tuple[str, ...], gib: int) -> None:
    running = {n: s for n, s in compose.services(*profiles).items() if n not in ONCE}
    assert sum(memory_mib(service) for service in running.values()) <= gib * 1024
    guide = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{gib} GB\b", guide)


@every({"collector", "jaeger"})
def test_memory_is_refused_before_it_is_taken_away(name: str) -> None:
    """Go's own limit below the limiter's, that below the container's."""
    given = compose.environment(EVERYTHING[name])
    file = ROOT / {"collector": "otel-collector.yaml", "jaeger": "jaeger/config.yaml"}[name]
    variable = f"{name.upper()}_MEMORY_LIMIT_MIB"
    (default,) = re.findall(rf"{variable}:-(\d+)", file.read_text(encoding="utf-8"))
    limit = int(given.get(variable, default))
    assert int(given["GOMEMLIMIT"].removesuffix("MiB")) == pytest.approx(0.8 * limit, rel=0.01)
    assert limit < memory_mib(EVERYTHING[name])


@every(OURS | PROGRAMS | ONCE)
def test_what_is_mounted_exists_and_files_stay_as_they_are(name: str) -> None:
    declared = compose.project()["volumes"]
    for mount in compose.mounts(EVERYTHING[name]):
        if mount.is_file:
            assert (ROOT / mount.source).exists(), mount.source
            assert mount.read_only, mount.source
        else:
            assert mount.source in declared
    targets = [mount.target for mount in compose.mounts(EVERYTHING[name])]
    for argument in EVERYTHING[name].get("command", []):
        file = re.search(r"=(/etc/\S+)", str(argument))
        assert not file or file[1] in targets, argument


def test_every_volume_is_somebodys() -> None:
    used = {m.source for service in EVERYTHING.values() for m in compose.mounts(service)}
    assert set(compose.project()["volumes"]) == {source for source in used if source[0] != "."}
    for one, other in product(sorted(OURS), repeat=2):
        if one < other:
            mine, theirs = ({m.source for m in compose.mounts(EVERYTHING[n])} for n in (one, other))
            assert not mine & theirs
