"""A `docker compose` for one service, whose containers are processes: what a fake host runs.

On the fake host's PATH as `docker` (see host.py). It keeps to what deploy/on-host relies
on: images come by pull and stay, `up --wait` replaces the container where its image or its
configuration is another and waits for its health, a container that ends is started again, and
containers outlive the client. Its folder, FAKE_DOCKER, holds

    registry/TAG.json   what can be pulled: {"command": [...], "env": {...}}
    images/TAG.json     what was pulled
    container.json      what runs
    calls               every command, one a line
    cut                 the command at which this process and the script that runs it are killed
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

FOLDER = Path(os.environ["FAKE_DOCKER"])
RESTART_S = 0.2


def main() -> int:
    words = sys.argv[1:]
    assert words.pop(0) == "compose"
    options: dict[str, list[str]] = {}
    while words[0].startswith("--"):
        options.setdefault(words[0], []).append(words[1])
        del words[:2]
    command, *arguments = words
    with (FOLDER / "calls").open("a") as calls:
        calls.write(f"{os.environ['AGENT_TAG']} {command}\n")
    cut = FOLDER / "cut"
    if cut.exists() and cut.read_text() == command:
        cut.unlink()
        kill_the_script()
        return 137
    variables = dict(os.environ)
    for file in options["--env-file"]:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        given = (line.split("=", 1) for line in lines if "=" in line)
        variables = {name: value.strip("\"'") for name, value in given} | variables
    compose = Path(options["--file"][0]).read_text(encoding="utf-8")
    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: variables.get(m[1], m[2] or ""), compose)
    service = yaml.safe_load(text)["services"]["api"]
    tag = service["image"].rpartition(":")[2]
    configuration = (
        text + Path(options["--project-directory"][0], "otel-collector.yaml").read_text()
    )
    match command:
        case "pull":
            return pull(tag)
        case "up":
            assert "--detach" in arguments
            assert "--no-build" in arguments
            wait_s = int(arguments[arguments.index("--wait-timeout") + 1])
            return up(tag, configuration, variables["AGENT_API_PORT"], wait_s)
        case "logs":
            print((FOLDER / "log").read_text())  # noqa: T201
        case "down":
            stop()
        case _:
            raise AssertionError(words)
    return 0


def pull(tag: str) -> int:
    image = FOLDER / "registry" / f"{tag}.json"
    if not image.exists():
        sys.stderr.write(f"manifest for agent:{tag} not found: manifest unknown\n")
        return 18
    (FOLDER / "images" / image.name).write_text(image.read_text())
    return 0


def up(tag: str, configuration: str, port: str, wait_s: int) -> int:
    image = FOLDER / "images" / f"{tag}.json"
    if not image.exists() and pull(tag):
        return 1
    running = container()
    if running is None or [running["tag"], running["configuration"]] != [tag, configuration]:
        stop()
        start(tag, configuration, json.loads(image.read_text()), port)
    end = time.monotonic() + wait_s
    retries = 5
    while time.monotonic() < end and retries:
        try:
            with open_directly(f"http://127.0.0.1:{port}/health"):
                return 0
        except urllib.error.HTTPError:
            retries -= 1
        except OSError:
            pass
        time.sleep(0.05)
    sys.stderr.write("container spanloom-api-1 is unhealthy\n")
    return 1


def open_directly(url: str) -> contextlib.AbstractContextManager[object]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(url, timeout=5)


def container() -> dict[str, str] | None:
    file = FOLDER / "container.json"
    return json.loads(file.read_text()) if file.exists() else None


def start(tag: str, configuration: str, image: dict, port: str) -> None:
    log = (FOLDER / "log").open("ab")
    process = subprocess.Popen(
        # as compose's `restart` policy does
        ["sh", "-c", f'while :; do "$@"; sleep {RESTART_S}; done', "sh", *image["command"]],
        env={**os.environ, **image["env"], "AGENT_API_PORT": port},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=hear_all_signals,  # noqa: PLW1509 - there is one thread
    )
    draft = FOLDER / "container.json.new"  # who looks meanwhile must not find half of it
    draft.write_text(json.dumps({"tag": tag, "configuration": configuration, "pid": process.pid}))
    draft.replace(FOLDER / "container.json")


def hear_all_signals() -> None:
    """What the client was told to ignore is nothing to a container: the daemon starts it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def kill_the_script() -> None:
    """End every shell above this process that runs deploy/on-host, by SIGKILL."""
    pid = os.getppid()
    while (command := Path(f"/proc/{pid}/cmdline").read_bytes()).startswith(b"bash\0-s\0--\0"):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        pid = parent
    assert command


def stop() -> None:
    """As the daemon does: it ends what it started, whichever client asks."""
    running = container()
    if running is None:
        return
    pid = int(running["pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # first who would start it again
        os.killpg(pid, signal.SIGTERM)
    end = time.monotonic() + 45
    while time.monotonic() < end and group_lives(pid):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    (FOLDER / "container.json").unlink()


def group_lives(group: int) -> bool:
    """Zombies do not count: they wait for a parent that has gone."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, pgrp = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
