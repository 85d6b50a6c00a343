"""What a deploy relies on: the image knows its commit, and a release's files are all it needs."""

import re
import subprocess

import yaml

from tests.deploy.dockerfile import ROOT, environment, stages

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_the_build_argument_becomes_what_health_tells() -> None:
    told = environment(stages(), "agent", {"PATH": ""}, REVISION="4f5e")

    assert told["AGENT_REVISION"] == "4f5e"
    assert environment(stages(), "agent", {"PATH": ""})["AGENT_REVISION"] == ""


def test_everything_that_is_mounted_is_sent_to_the_host() -> None:
    """deploy/deploy sends these paths of a commit; compose mounts files of the release only."""
    script = (ROOT / "deploy" / "deploy").read_text(encoding="utf-8")
    found = re.search(r"archive .* -- \\\n\s+(.+) \|$", script, re.MULTILINE)
    assert found is not None
    sent = subprocess.check_output(
        ["git", "ls-files", *found[1].split()], cwd=ROOT, text=True
    ).splitlines()
    mounted = {
        volume.partition(":")[0].removeprefix("./")
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    }

    assert mounted
    for path in mounted:
        assert [file for file in sent if f"{file}/".startswith(f"{path}/")], path
    assert {"docker-compose.yml", "deploy/versions.env"} < set(sent)


def test_the_tag_chooses_every_image_that_is_ours() -> None:
    """And the API is the service whose log is shown when it fails, on the port that is asked."""
    ours = [each for each in COMPOSE["services"].values() if "build" in each]

    assert ours
    assert all(each["image"].endswith(":${AGENT_TAG:-local}") for each in ours)
    assert COMPOSE["services"]["api"]["ports"] == ["127.0.0.1:${AGENT_API_PORT:-8000}:8000"]
