"""A host to deploy to, on this machine: a real sshd on loopback, and `docker` as in docker_program.

Where OpenSSH's server is not installed (Debian: openssh-server) a program stands in for `ssh` that
runs the command in a shell of its own, without a terminal and with nothing of this environment, as
sshd does. Scripts, shells, locks, signals and processes are real either way.
"""

import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.free_ports import free_port

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SECONDS = 180
SENT = ("jaeger", "prometheus", "loki", "grafana")
COMPOSE = """\
services:
  api:
    image: ${AGENT_IMAGE:-agent}:${AGENT_TAG}
"""


@dataclass
class Host:
    """The folder on the host, the checkout that is deployed from, and what Docker holds."""

    folder: Path
    ssh: str
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        for name in ("registry", "images"):
            (self.docker / name).mkdir(parents=True)
        self.dir.mkdir()
        (self.dir / ".env").write_text(f'SECRET=x\nAGENT_API_PORT="{self.port}"\n')
        scripts = self.checkout / "deploy"
        scripts.mkdir(parents=True)
        for name in ("deploy", "rollback", "on-host", "connection.sh", "versions.env"):
            shutil.copy(ROOT / "deploy" / name, scripts)
        for name in SENT:
            (self.checkout / name).mkdir()
            (self.checkout / name / "settings.yaml").write_text("a: 1\n")
        (self.checkout / "docker-compose.yml").write_text(COMPOSE)
        self.git("init", "--quiet", "--initial-branch=main")

    @property
    def dir(self) -> Path:
        return self.folder / "srv"

    @property
    def docker(self) -> Path:
        return self.folder / "docker"

    @property
    def checkout(self) -> Path:
        return self.folder / "a checkout"

    def git(self, *arguments: str) -> str:
        return subprocess.check_output(
            ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments],
            cwd=self.checkout,
            text=True,
        ).strip()

    def release(
        self, fault: str = "none", *, revision: str | None = None, pushed: bool = True
    ) -> str:
        """A new commit and its image in the registry; the commit id, which is the tag."""
        number = len([*self.docker.glob("registry/*")])
        (self.checkout / "otel-collector.yaml").write_text(f"# {number} {fault} {time.time_ns()}\n")
        self.git("add", "-A")
        self.git("commit", "--quiet", "-m", f"Release {number}")
        commit = self.git("rev-parse", "HEAD")
        program = [sys.executable, str(HERE / "release_server.py"), revision or commit, fault]
        if pushed:
            self.push(commit, program)
        return commit

    def push(self, tag: str, command: list[str], **env: str) -> None:
        """An image into the registry."""
        image = json.dumps({"command": command, "env": env})
        (self.docker / "registry" / f"{tag}.json").write_text(image)

    def run(self, script: str, *arguments: str, gate: int = 60) -> subprocess.CompletedProcess[str]:
        """deploy/deploy or deploy/rollback to its end."""
        process = self.start(script, *arguments, gate=gate)
        out, err = process.communicate(timeout=SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, script: str, *arguments: str, gate: int = 60) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(self.checkout / "deploy" / script, "--host", "fake-host"),
                *("--dir", self.dir, "--gate", str(gate), *arguments),
            ],
            env={**os.environ, "DEPLOY_SSH": self.ssh},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def good(self) -> list[str]:
        """The tags that were recorded as good, the one in service last."""
        file = self.dir / "state" / "good"
        return file.read_text().split() if file.exists() else []

    @property
    def running(self) -> str | None:
        """The tag of the container that runs."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads((self.docker / "container.json").read_text())["tag"])
        return None

    @property
    def in_progress(self) -> bool:
        return (self.dir / "state" / "in-progress").exists()

    @property
    def calls(self) -> list[str]:
        """Every call of docker compose: `TAG COMMAND`."""
        return (self.docker / "calls").read_text().splitlines()

    def script(self) -> int | None:
        """Process id of deploy/on-host at work on this host; not of its sub-shells."""
        found = self._processes(b"bash", b"-s", b"--")
        return next((pid for pid, parent in found.items() if parent not in found), None)

    def kill_script(self) -> None:
        """kill -9 of it and its sub-shells; what it called lives on."""  # noqa: D403
        for pid in self._processes(b"bash", b"-s", b"--"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def clients(self) -> list[int]:
        """Process ids of `docker compose` at work for this host."""
        program = str(HERE / "docker_program.py")
        return [*self._processes(sys.executable.encode(), program.encode())]

    def wait_for_clients(self) -> None:
        """Until `docker compose`, which outlives a script that is killed, holds no lock."""
        wait_until(lambda: not self.clients(), "docker compose has ended")

    def _processes(self, *beginning: bytes) -> dict[int, int]:
        """Those of this host whose command line begins so, and each one's parent."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                ours = any(word.startswith(str(self.dir).encode()) for word in words)
                if ours and words[: len(beginning)] == [*beginning]:
                    stat = (folder / "stat").read_text().rpartition(")")[2].split()
                    found[int(folder.name)] = int(stat[1])
        return found

    def close(self) -> None:
        self.kill_script()
        container = self.docker / "container.json"
        if container.exists():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(json.loads(container.read_text())["pid"], signal.SIGKILL)


@contextlib.contextmanager
def fake_host(folder: Path) -> Iterator[Host]:
    """The host, with a way to it; everything that was started ends with it."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    docker = programs / "docker"
    docker.write_text(
        f"#!/bin/sh\nFAKE_DOCKER='{folder}/docker' exec '{sys.executable}' "
        f"'{HERE}/docker_program.py' \"$@\"\n"
    )
    docker.chmod(0o755)
    path = f"{programs}:/usr/local/bin:/usr/bin:/bin"
    with contextlib.ExitStack() as stack:
        if SSHD is not None and shutil.which("ssh") is not None:
            ssh = stack.enter_context(server(folder / "ssh", path))
        else:
            ssh = stand_in(programs, path)
        host = Host(folder, ssh)
        stack.callback(host.close)
        yield host


@contextlib.contextmanager
def server(folder: Path, path: str) -> Iterator[str]:
    """An sshd with keys of its own; the command that reaches it as `fake-host`."""
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    port = free_port()
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nUsePAM no\n"
        f"StrictModes no\nPermitRootLogin prohibit-password\nSetEnv PATH={path}\n"
    )
    (folder / "known_hosts").write_text(f"fake-host {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"Host fake-host\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  HostKeyAlias fake-host\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD is not None
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdout=output, stderr=output
        )
    try:
        wait_until(lambda: "Server listening" in log.read_text(), "sshd listens")
        yield f"ssh -F {folder}/config"
    finally:
        process.terminate()
        process.wait()


def stand_in(programs: Path, path: str) -> str:
    """A program in place of `ssh`: its options are dropped, the command runs in a new session."""
    program = programs / "ssh-stand-in"
    program.write_text(
        "#!/bin/bash\nwhile [[ $1 != -- ]]; do shift; done\nshift 2\n"
        f'exec setsid --wait env -i HOME="$HOME" PATH={path} bash -c "$*"\n'
    )
    program.chmod(0o755)
    return str(program)


def wait_until(holds: object, what: str) -> None:
    """Poll until `holds()` is true."""
    assert callable(holds)
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)
