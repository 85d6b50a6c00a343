"""docker-compose.yml by Docker Compose's own loader, and its checks by the real programs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploy import compose
from tests.deploy.compose import FULL, SMALL
from tests.free_ports import free_port
from tests.stack.programs import ROOT, Loki, Prometheus, Stack, binary

pytestmark = pytest.mark.stack


def load(
    folder: Path, *profiles: str, dotenv: str | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`docker compose config`, with the files of variables that the guide names."""
    if dotenv is None:
        dotenv = "".join(f'{name}="{value}"\n' for name, value in compose.PASSWORDS.items())
    own = folder / ".env"
    own.write_text(dotenv, encoding="utf-8")
    file = compose.FILE
    if text is not None:
        file = folder / "docker-compose.yml"
        file.write_text(text, encoding="utf-8")
    flags = [flag for profile in profiles for flag in ("-profile", profile)]
    return subprocess.run(
        [binary("compose-config"), "-env-file", ROOT / "deploy/versions.env",
         "-env-file", own, *flags, file],
        capture_output=True,
        text=True,
        check=False,
        env={},
        timeout=60,
    )  # fmt: skip


def loaded(folder: Path, *profiles: str) -> dict[str, Any]:
    done = load(folder, *profiles)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "profiles", [(), SMALL, FULL, compose.PROFILES], ids=["none", "small", "full", "all"]
)
def test_it_is_what_compose_reads(tmp_path: Path, profiles: tuple[str, ...]) -> None:
    """No objection, and the same services, images, variables and commands as our own reading."""
    real = loaded(tmp_path, *profiles)
    ours = compose.services(*profiles)

    assert set(real["services"]) == set(ours)
    for name, service in real["services"].items():
        given = service.get("environment", {}).items()
        assert {k: v for k, v in given if v is not None} == compose.environment(ours[name])
        assert service["image"] == ours[name]["image"]
        assert (service.get("command") or []) == [str(x) for x in ours[name].get("command", [])]
        assert {
            (each["host_ip"], each["published"], str(each["target"]))
            for each in service.get("ports", [])
        } == set(compose.published(ours[name]))
        mounted = {
            (each["source"].removeprefix(f"{ROOT}/"), each["target"], each.get("read_only", False))
            for each in service.get("volumes", [])
        }
        assert mounted == {
            (mount.source.removeprefix("./"), mount.target, mount.read_only)
            for mount in compose.mounts(ours[name])
        }
        if "healthcheck" in ours[name]:
            assert service["healthcheck"].get("test") == ours[name]["healthcheck"].get("test")


def test_the_networks_and_their_range_are_as_trust_assumes(tmp_path: Path) -> None:
    networks = loaded(tmp_path, *FULL)["networks"]
    assert networks["sessions"]["internal"] is True
    (config,) = networks["agent"]["ipam"]["config"]
    assert config == compose.project(*FULL)["networks"]["agent"]["ipam"]["config"][0]


@pytest.mark.parametrize("missing", sorted(compose.PASSWORDS))
def test_without_a_password_nothing_starts(tmp_path: Path, missing: str) -> None:
    rest = "".join(f"{name}=x\n" for name in compose.PASSWORDS if name != missing)
    done = load(tmp_path, *SMALL, dotenv=rest)
    assert done.returncode == 1
    assert f"write a long random {missing} into .env" in done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    read_only: true\n", "    read_onyl: true\n"),
        ("condition: service_healthy}", "condition: service_healty}"),
        ('volumes: ["api-data:/data"]', 'volumes: ["app-data:/data"]'),
        ("networks: [agent, sessions]", "networks: [agent, session]"),
        ("      retrieval: {condition", "      retrieva1: {condition"),
    ],
)  # fmt: skip
def test_a_mistake_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    """What the check above would say: misspelt keys, conditions, volumes, networks, services."""
    text = compose.FILE.read_text(encoding="utf-8")
    assert right in text
    done = load(tmp_path, *FULL, text=text.replace(right, wrong, 1))
    assert done.returncode == 1
    assert done.stderr


@pytest.mark.parametrize("name", ["prometheus", "loki"])
def test_a_check_that_the_image_has_no_shell_for_works(stack: Stack, name: str) -> None:
    """Healthy where the program is, and not where it is not; by the program's own binary."""
    program: Prometheus | Loki = getattr(stack, name)
    _, command, *arguments = compose.services(*FULL)[name]["healthcheck"]["test"]
    (asked,) = (x for x in arguments if "127.0.0.1" in x)
    default = httpx2.URL(asked.partition("=")[2]).netloc.decode()

    def status(netloc: str) -> int:
        return subprocess.run(
            [binary(Path(command).name), *(x.replace(default, netloc) for x in arguments)],
            check=False,
            timeout=60,
        ).returncode

    assert status(httpx2.URL(program.url).netloc.decode()) == 0
    assert status(f"127.0.0.1:{free_port()}") == 1
