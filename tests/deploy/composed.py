"""Starts the services of docker-compose.yml where there is no container engine.

Each has the mounts, user, capabilities, variables and command that the file gives it, a root that
is an overlay of this host's files, and namespaces of its own; the file's networks are bridges, its
names each container's /etc/hosts. Programs of other images are what `make stack-tools` built.
What this cannot show is those images themselves, and the engine.
"""

import contextlib
import ctypes
import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy import compose
from tests.deploy.containers import READY_S, Builder, end, first_process
from tests.deploy.dockerfile import healthcheck

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Image:
    """An image of others, as far as it is known: its programs and the folders it holds."""

    entrypoint: tuple[str, ...]
    programs: dict[str, Path]
    """Path in the image, and the program here that stands there."""
    folders: dict[str, str] = field(default_factory=dict)
    """Folders in the image and their owners: what a new volume mounted there begins with."""
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    """A line of its /etc/passwd, for a program that asks who it is."""


@dataclass
class Running:
    """A container; `pid` is its first process, as this host numbers it."""

    name: str
    process: subprocess.Popen[bytes]
    pid: int
    log: Path
    variables: dict[str, str]
    user: str
    addresses: dict[str, str]
    """By network."""

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `docker exec` and health checks do."""
        user, _, group = self.user.partition(":")
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--root"),
                *("--setuid", user, "--setgid", group),
                *("env", "-i", *(f"{key}={value}" for key, value in self.variables.items())),
                *("sh", "-c", 'cd /app 2>/dev/null || cd /; exec "$@"', "sh", *command),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


class Composition:
    """A project, its networks up; `start` starts what the file says, in its order."""

    def __init__(
        self, builder: Builder, folder: Path, images: dict[str, Image], *profiles: str, **env: str
    ) -> None:
        self.running: dict[str, Running] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._builder = builder
        self._folder = folder
        self._images = images
        self._project = compose.project(*profiles, **env)
        self.services: dict[str, dict[str, Any]] = {
            name: service
            for name, service in self._project["services"].items()
            if "build" in service or name in images
        }
        self._free: dict[str, Iterator[ipaddress.IPv4Address]] = {}
        self._prefix: dict[str, int] = {}
        self._addresses: dict[str, dict[str, str]] = {}
        self.host = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        _wait_for_own(self.host.pid, "net")
        self._make_networks()

    def close(self) -> None:
        """End every container and the host's network."""
        for process in self._processes:
            end(process)
        self.host.kill()
        self.host.wait()

    @contextlib.contextmanager
    def on_the_host(self) -> Iterator[None]:
        """What this thread connects to inside is what the host of the containers would reach."""
        libc = ctypes.CDLL(None, use_errno=True)
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        other = os.open(f"/proc/{self.host.pid}/ns/net", os.O_RDONLY)
        try:
            assert libc.setns(other, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(own, _CLONE_NEWNET) == 0
            os.close(own)
            os.close(other)

    def url(self, name: str, network: str, port: int) -> str:
        """Where the host reaches a container."""
        return f"http://{self._addresses[name][network]}:{port}"

    def start_all(self) -> None:
        """Every service once what it depends on is as it asks; then wait until all are healthy."""
        waiting = dict(self.services)
        while waiting:
            for name, service in list(waiting.items()):
                needs = {
                    other: needed["condition"]
                    for other, needed in service.get("depends_on", {}).items()
                    if other in self.services
                }
                if needs.keys() & waiting.keys():
                    continue
                for other, condition in needs.items():
                    self._wait(other, condition)
                self._start(name)
                del waiting[name]
        for name in self.services:
            if self.services[name]["restart"] != "no":
                self._wait(name, "service_healthy")

    def order_of_stopping(self) -> list[str]:
        """Those that run, each before what it depends on, as `docker compose down` goes."""
        return [name for name in reversed(self.running) if self.running[name].pid]

    def stop(self, name: str) -> int:
        """SIGTERM, and SIGKILL after the file's patience; the exit status."""
        container = self.running[name]
        patience = float(self.services[name].get("stop_grace_period", "10s").removesuffix("s"))
        os.kill(container.pid, signal.SIGTERM)
        try:
            return container.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            end(container.process)
            return container.process.wait()

    # --- starting ---------------------------------------------------------------------------------

    def _make_networks(self) -> None:
        script = ["ip link set lo up"]
        for number, (name, given) in enumerate(self._project["networks"].items()):
            (config,) = (given.get("ipam") or {"config": [{}]})["config"]
            subnet = ipaddress.IPv4Network(config.get("subnet", f"172.30.{100 + number}.0/24"))
            hosts = ipaddress.IPv4Network(config.get("ip_range", str(subnet))).hosts()
            gateway = ipaddress.IPv4Address(config.get("gateway", str(next(subnet.hosts()))))
            self._free[name] = iter([address for address in hosts if address != gateway])
            self._prefix[name] = subnet.prefixlen
            script += [
                f"ip link add {name} type bridge",
                f"ip addr add {gateway}/{subnet.prefixlen} dev {name}",
                f"ip link set {name} up",
            ]
        _run(["nsenter", "--net", "--target", str(self.host.pid), "sh", "-ec", "; ".join(script)])
        # first of all: a container's /etc/hosts names those that come later, too
        for name, service in self.services.items():
            on = () if service.get("network_mode") == "none" else compose.networks(service)
            self._addresses[name] = {network: str(next(self._free[network])) for network in on}

    def _hosts_file(self, name: str) -> Path:
        own = self._addresses[name]
        lines = ["127.0.0.1 localhost"]
        for host, other in compose.reachable(self.services, name).items():
            shared = [network for network in own if network in self._addresses[other]]
            lines.append(f"{self._addresses[other][shared[0]]} {host}")
        file = self._folder / f"{name}.hosts"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    def _start(self, name: str) -> None:
        service = self.services[name]
        image = self._images.get(name)
        target = service["build"]["target"] if "build" in service else None
        root = self._builder.copy(name, target)
        if image is not None and image.user:
            self._builder.inside(f"echo '{image.user}' >>{root}/etc/passwd")
        variables = (
            self._builder.environment(target) if target else dict(image_of(image).environment)
        )
        variables |= compose.environment(service)
        user = service.get("user", "1000:1000")
        command = [str(word) for word in service.get("command", [])]
        if image is not None:
            command = [*image.entrypoint, *command]
        elif not command:
            command = self._builder.stage(str(target)).last("CMD").words
        script = self._mounts(name, root, image)
        uid, _, gid = user.partition(":")
        capabilities = "".join(f",+{each.lower()}" for each in service.get("cap_add", []))
        setup = f"""
            read -r _
            ip link set lo up
            {script}
            exec chroot . setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs \\
                --inh-caps=-all{capabilities} --bounding-set=-all{capabilities} \\
                sh -c 'cd /app 2>/dev/null || cd /; exec "$@"' sh "$@" </dev/null
        """
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *("nsenter", "--mount", "--target", str(self._builder.pid)),
                    *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"),
                    *("sh", "-ec", setup, "sh", "env", "-i"),
                    *(f"{key}={value}" for key, value in variables.items()),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        _wait_for_own(process.pid, "net")
        for number, (network, address) in enumerate(self._addresses[name].items()):
            self._plug_in(process.pid, network, number, address)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        # one that ends may have done so already
        pid = first_process(process, log) if service["restart"] != "no" else 0
        self.running[name] = Running(
            name, process, pid, log, variables, user, self._addresses[name]
        )

    def _mounts(self, name: str, root: str, image: Image | None) -> str:
        """A script that puts together what the container sees, and leaves it in that folder."""
        service = self.services[name]
        binds = [("/etc/hosts", str(self._hosts_file(name)), True)]
        for path, program in (image.programs if image else {}).items():
            binds.append((path, str(program), True))
        for mount in compose.mounts(service):
            if mount.is_file:
                source = compose.ROOT / mount.source
            else:
                owner = image.folders.get(mount.target) if image else None
                source = self._volume(mount.source, mount.target, root, owner)
            binds.append((mount.target, str(source), mount.read_only))
        wanted = []
        for path, given, _ in binds:
            make = (
                "mkdir -p" if Path(given).is_dir() else f"mkdir -p {root}{Path(path).parent}; touch"
            )
            wanted.append(f"test -e {root}{path} || {{ {make} {root}{path}; }}")
        tmpfs = [entry.partition(":") for entry in service.get("tmpfs", [])]
        # by chroot: /var/run leads to /run, which would be this host's
        wanted += [f"chroot {root} mkdir -p {path}" for path, _, _ in tmpfs]
        self._builder.inside("; ".join(wanted))
        lines = [
            "mount --make-rprivate /",
            f"mount --bind {root} {root}",
            *([f"mount -o remount,bind,ro {root}"] if service.get("read_only") else []),
            f"cd {root}",
            "mount -t proc proc proc",
            "mount --bind /dev dev",
        ]
        for path, _, options in tmpfs:
            lines.append(f"chroot . mount -t tmpfs -o {options or 'mode=1777'} tmpfs {path}")
        for path, given, read_only in binds:
            lines.append(f"mount --bind '{given}' .{path}")
            if read_only:
                lines.append(f"mount -o remount,bind,ro .{path}")
        return "\n".join(lines)

    def _volume(self, volume: str, target: str, root: str, owner: str | None) -> Path:
        """A volume; a new one belongs to whom the image's folder does, or to root."""
        folder = self._folder / "volumes" / volume
        if not folder.exists():
            folder.mkdir(parents=True)
            look = f"stat -c %u:%g {root}{target} 2>/dev/null || echo 0:0"
            uid, _, gid = (owner or self._builder.inside(look).strip()).partition(":")
            os.chown(folder, int(uid), int(gid))
        return folder

    def _plug_in(self, pid: int, network: str, number: int, address: str) -> None:
        link = f"v{pid}-{number}"
        on_host = (
            f"ip link add {link} type veth peer name eth{number} netns {pid};"
            f"ip link set {link} master {network}; ip link set {link} up"
        )
        inside = (
            f"ip addr add {address}/{self._prefix[network]} dev eth{number};"
            f"ip link set eth{number} up"
        )
        _run(["nsenter", "--net", "--target", str(self.host.pid), "sh", "-ec", on_host])
        _run(["nsenter", "--net", "--target", str(pid), "sh", "-ec", inside])

    # --- waiting ----------------------------------------------------------------------------------

    def _wait(self, name: str, condition: str) -> None:
        container = self.running[name]
        until = time.monotonic() + READY_S
        while True:
            ended = container.process.poll()
            if condition == "service_completed_successfully":
                if ended is not None:
                    assert ended == 0, f"{name}: {container.log.read_text(errors='replace')}"
                    return
            else:
                assert ended is None, f"{name}: {container.log.read_text(errors='replace')}"
                if condition == "service_started" or self.healthy(name):
                    return
            assert time.monotonic() < until, f"{name}: {container.log.read_text(errors='replace')}"
            time.sleep(0.5)

    def healthy(self, name: str) -> bool:
        """What the file's health check says, or the image's; True where there is none."""
        check = self.services[name].get("healthcheck")
        if check is None:
            if "build" not in self.services[name]:
                return True
            stage = self._builder.stage(self.services[name]["build"]["target"])
            return self.running[name].execute(healthcheck(stage).command).returncode == 0
        return self.running[name].execute(check["test"][1:]).returncode == 0


def image_of(image: Image | None) -> Image:
    """The image of a service that is not built here."""
    assert image is not None
    return image


def _wait_for_own(pid: int, kind: str) -> None:
    end = time.monotonic() + READY_S
    ours = Path(f"/proc/self/ns/{kind}").readlink()
    while Path(f"/proc/{pid}/ns/{kind}").readlink() == ours:
        assert time.monotonic() < end, f"no {kind} namespace came up"
        time.sleep(0.01)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
