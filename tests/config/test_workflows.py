"""The workflows of .github: what two linters say of them, and that they run what people run."""

import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack.programs import binary

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Neither a target nor a script: a step's output.
OWN_COMMANDS = ['echo "name=ghcr.io/${GITHUB_REPOSITORY,,}" >>"$GITHUB_OUTPUT"']


def load(file: Path) -> dict[str, Any]:
    # PyYAML reads the key `on` as a boolean
    text = re.sub(r"^on:", '"on":', file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


WORKFLOWS = {file.name: load(file) for file in FILES}
JOBS = [
    (f"{name}:{job}", body)
    for name, workflow in WORKFLOWS.items()
    for job, body in workflow["jobs"].items()
]


def steps() -> list[dict[str, Any]]:
    return [step for _, job in JOBS for step in job.get("steps", [])]


def commands() -> list[str]:
    return [line for step in steps() for line in step.get("run", "").splitlines()]


def targets(rule: str = r"[\w-]+") -> dict[str, list[str]]:
    """The Makefile's targets and what each needs first."""
    found = re.findall(rf"^({rule}):(?!=)([^#\n]*)", MAKEFILE, re.MULTILINE)
    return {name: needed.split() for name, needed in found}


# What linters say.


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [binary("actionlint"), "-shellcheck", BIN / "shellcheck", "-pyflakes", "", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def zizmor(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "zizmor", "--offline", "--no-progress", "--color=never", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("GH_")},
    )


def test_actionlint_has_nothing_to_say() -> None:
    done = actionlint(*FILES)

    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_would_object(tmp_path: Path) -> None:
    """The check can fail, in a workflow's own language and in the shell of its steps."""
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    needs: nobody\n    steps:\n"
        "      - run: rm -rf $HOME/$1\n"
    )

    done = actionlint(bad)

    assert done.returncode == 1
    assert "nobody" in done.stdout
    assert "SC2086" in done.stdout


def test_zizmor_has_nothing_to_say() -> None:
    done = zizmor(ROOT / ".github")

    assert done.returncode == 0, done.stdout + done.stderr
    for file in FILES:
        assert f"completed {file}" in done.stderr


def test_zizmor_would_object(tmp_path: Path) -> None:
    """A title that becomes shell, an action that moves."""
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
        "      - uses: actions/checkout@v7\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )

    done = zizmor(bad)

    assert done.returncode != 0
    for audit in ("template-injection", "unpinned-uses", "excessive-permissions", "artipacked"):
        assert f"[{audit}]" in done.stdout


# What they leave to us.


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_and_say_their_version(file: Path) -> None:
    uses = re.findall(r"^[ -]*uses: (\S+)(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)

    assert uses
    for action, comment in uses:
        if not action.startswith("./"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_an_action_has_one_commit_everywhere() -> None:
    pins = {step["uses"] for step in steps() if "uses" in step}

    assert len(pins) == len({pin.partition("@")[0] for pin in pins})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_nothing_and_does_not_run_beside_itself(name: str) -> None:
    """Each job asks for what it needs."""
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["concurrency"]["group"]


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_a_job_may_little_ends_in_time_and_keeps_no_credentials(
    name: str, job: dict[str, Any]
) -> None:
    allowed = {"contents": "read"}
    if name == "release.yml:image":
        allowed["packages"] = "write"
    assert job["permissions"] == allowed
    if "uses" in job:
        return
    assert job["timeout-minutes"] <= 90
    assert re.fullmatch(r"ubuntu-\d\d\.04", job["runs-on"])
    checkout, *_ = job["steps"]
    assert checkout["uses"].startswith("actions/checkout@")
    assert checkout["with"]["persist-credentials"] is False


def test_every_command_is_a_target_or_a_script_of_this_repository() -> None:
    known = targets()
    scripts = []
    for command in commands():
        if command in OWN_COMMANDS:
            continue
        program, *words = shlex.split(command)
        if program == "make":
            assert words
            assert set(words) <= set(known), command
        else:
            scripts.append(words[0] if program == "python3" else program)

    assert {".github/ssh-key", "deploy/deploy", "deploy/rollback"} < set(scripts)
    for script in scripts:
        assert (ROOT / script).stat().st_mode & stat.S_IXUSR or script.endswith(".py"), script


def test_a_pull_request_meets_every_check_there_is() -> None:
    """`make check`, LangGraph's versions, the stack; on the Python versions we say we support."""
    assert "pull_request" in WORKFLOWS["checks.yml"]["on"]
    ran = {
        word for command in commands() if command.startswith("make ") for word in command.split()
    }
    wanted = {*targets()["check"], "test-versions", "stack-tools", "test-stack"}
    assert wanted - {"test"} <= ran
    assert "coverage" in ran, "which is `make test`, measured"

    matrix = WORKFLOWS["checks.yml"]["jobs"]["tests"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    supported = [line for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert [f"{prefix}{version.removeprefix('3.')}" for version in matrix] == supported
    assert PROJECT["requires-python"] == f">={matrix[0]}"
    for step in steps():
        if (version := step.get("with", {}).get("python-version")) and "$" not in version:
            assert version in matrix


def test_the_stack_is_built_again_when_and_only_when_its_versions_change() -> None:
    """And where scripts/stack_tools.py looks for it."""
    (cache,) = (step["with"] for step in steps() if "actions/cache@" in step.get("uses", ""))

    hashed = re.findall(r"'([^']+)'", cache["key"])
    assert hashed == ["deploy/versions.env", "deploy/stack-tools/**", "scripts/stack_tools.py"]
    assert all([*ROOT.glob(pattern)] for pattern in hashed)
    environment = {"PATH": os.environ["PATH"], "HOME": "/nobody"}
    script = "from scripts import stack_tools; print(stack_tools.tools()[0].path.parent)"
    path = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment)
    assert path.decode().strip() == cache["path"].replace("~", "/nobody")


def test_only_what_was_checked_and_built_is_deployed() -> None:
    """By commit, one deploy or rollback at a time."""
    release = WORKFLOWS["release.yml"]
    assert release["on"] == {"push": {"branches": ["main"]}}
    assert release["jobs"]["checks"]["uses"] == "./.github/workflows/checks.yml"
    assert release["jobs"]["image"]["needs"] == "checks"
    assert release["jobs"]["deploy"]["needs"] == "image"
    build = release["jobs"]["image"]["steps"][-1]["with"]
    assert build["tags"].endswith(":${{ github.sha }}")
    assert build["build-args"] == "REVISION=${{ github.sha }}"
    deploy = release["jobs"]["deploy"]["concurrency"]
    assert deploy == WORKFLOWS["rollback.yml"]["concurrency"]
    assert deploy == {"group": "production", "cancel-in-progress": False}
    assert release["concurrency"]["cancel-in-progress"] is False


def test_both_images_carry_the_names_that_compose_gives_them() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    wanted = {
        (service["build"]["target"], re.sub(r"\$\{[^}]*\}", "", service["image"]).rstrip(":"))
        for service in compose["services"].values()
        if "build" in service
    }

    pushed = WORKFLOWS["release.yml"]["jobs"]["image"]["strategy"]["matrix"]["include"]

    assert {(each["target"], each["suffix"]) for each in pushed} == wanted
    checked = WORKFLOWS["checks.yml"]["jobs"]["image"]["strategy"]["matrix"]["target"]
    assert {each["target"] for each in pushed} == set(checked)


# What the steps run, as far as it runs here.


def test_the_key_of_a_deploy_is_kept_from_others(tmp_path: Path) -> None:
    def run(**env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / ".github" / "ssh-key"],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **env},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "set the secret DEPLOY_SSH_KEY" in run().stderr
    assert "set the variable DEPLOY_KNOWN_HOSTS" in run(DEPLOY_SSH_KEY="k").stderr
    assert not (tmp_path / ".ssh").exists()

    done = run(DEPLOY_SSH_KEY="a key\nof lines", DEPLOY_KNOWN_HOSTS="host ssh-ed25519 AAAA")

    assert done.returncode == 0, done.stderr
    assert "a key" not in done.stdout + done.stderr
    assert (tmp_path / ".ssh" / "id_deploy").read_text() == "a key\nof lines\n"
    for file in (tmp_path / ".ssh").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.timeout(600)
def test_make_coverage_counts_lines_and_branches(tmp_path: Path) -> None:
    report = tmp_path / "coverage.xml"

    arguments = f"-p no:cacheprovider --cov-report=xml:{report} tests/deploy/test_revision.py"
    done = subprocess.run(
        ["make", "coverage", f"PYTEST_ARGS={arguments}"],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "COVERAGE_FILE": str(tmp_path / "data"),
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text(encoding="utf-8")
    covered = re.search(r'filename="(?:spanloom/)?ports.py" [^>]*line-rate="([\d.]+)"', text)
    assert covered is not None, text[:2000]
    assert float(covered[1]) > 0
    assert re.search(r"^TOTAL\s+\d+\s+\d+\s+\d+\s+\d+\s+\d+%", done.stdout, re.MULTILINE)
