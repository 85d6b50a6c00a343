"""Builds the Dockerfile and runs its containers where there is no container engine.

Each stage is an overlay over this host's own files in place of the base image; RUN happens in a
chroot of it. A container is a process in mount and PID namespaces of its own, its root read-only,
its user the image's. What this cannot show is the base image and the engine themselves.
"""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from tests.deploy.dockerfile import Stage, environment, ignore_patterns, is_ignored, stages

READY_S = 120
BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"}


class Builder:
    """A mount namespace that holds the built stages; everything in it goes when it is closed."""

    def __init__(self, context: Path) -> None:
        self._context = context
        self._stages = stages()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "cat"], stdin=subprocess.PIPE
        )
        self._scratch = "/mnt"
        self._built: dict[str, str] = {}
        deadline = time.monotonic() + READY_S
        ours = Path("/proc/self/ns/mnt").readlink()
        while Path(f"/proc/{self._holder.pid}/ns/mnt").readlink() == ours:
            assert time.monotonic() < deadline, "no mount namespace came up"
            time.sleep(0.01)
        self.inside("mount -t tmpfs tmpfs /mnt")

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    @property
    def pid(self) -> int:
        """The process whose mount namespace everything here is in."""
        return self._holder.pid

    def copy(self, name: str, stage: str | None) -> str:
        """A folder with what a stage's image holds, or this host's files, for mount points."""
        if stage is not None:
            self.build(stage)
        layers = [f"{self._scratch}/{each}/upper" for each in self._chain(stage)] if stage else []
        folder = f"{self._scratch}/of-{name}"
        self.inside(
            f"mkdir -p {folder}/upper {folder}/work {folder}/root;"
            f"mount -t overlay overlay -o lowerdir={':'.join([*layers, '/'])},"
            f"upperdir={folder}/upper,workdir={folder}/work {folder}/root"
        )
        return f"{folder}/root"

    def inside(self, script: str, *, stdin: bytes | None = None, **env: str) -> str:
        """Run a shell script in the namespace; its output."""
        done = subprocess.run(
            ["nsenter", "--mount", "--target", str(self._holder.pid), "sh", "-ec", script],
            input=stdin,
            capture_output=True,
            check=False,
            env={**os.environ, **env},
        )
        assert done.returncode == 0, f"{script}\n{done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()

    def environment(self, name: str) -> dict[str, str]:
        return environment(self._stages, name, BASE_ENVIRONMENT)

    def stage(self, name: str) -> Stage:
        return self._stages[name]

    def written(self, name: str) -> list[str]:
        """Every file that the stages put into an image, as the image's paths."""
        layers = [f"{self._scratch}/{each}/upper" for each in self._chain(name)]
        listed = self.inside(
            " ; ".join(f"cd {layer} && find . -type f -o -type l" for layer in layers)
        )
        return [line[1:] for line in listed.splitlines()]

    def build(self, name: str) -> str:
        """Build a stage and what it needs; the folder where it is mounted."""
        if name in self._built:
            return self._built[name]
        stage = self._stages[name]
        if stage.base in self._stages:
            self.build(stage.base)
        layers = [f"{self._scratch}/{each}/upper" for each in self._chain(name)[1:]]
        folder = f"{self._scratch}/{name}"
        root = f"{folder}/root"
        self.inside(
            f"mkdir -p {folder}/upper {folder}/work {root};"
            f"mount -t overlay overlay -o lowerdir={':'.join([*layers, '/'])},"
            f"upperdir={folder}/upper,workdir={folder}/work {root};"
            f"mount --bind /proc {root}/proc; mount --rbind /dev {root}/dev"
        )
        self._built[name] = root
        if not layers:
            self._stand_in_for_base(root)
        self._carry_out(stage, root)
        return root

    def _chain(self, name: str) -> list[str]:
        stage = self._stages[name]
        return [name, *(self._chain(stage.base) if stage.base in self._stages else [])]

    def _stand_in_for_base(self, root: str) -> None:
        """A Python 3.12 where the base image has one, and nothing of the host that is ours."""
        prefix = python_3_12()
        assert prefix is not None
        # where this host's Python is nobody else's business, let others reach it
        above = [f"{root}{folder}" for folder in Path(prefix).parents[:-1]]
        self.inside(
            f"chmod o+x {' '.join(above)};"
            f"ln -sf {prefix}/bin/python3.12 {root}/usr/local/bin/python3.12;"
            f"sed -i '/:1000:/d' {root}/etc/passwd {root}/etc/group;"
            f"rm -rf {root}/opt/agent {root}/app {root}/data"
        )

    def _carry_out(self, stage: Stage, root: str) -> None:
        folder = self._workdir(stage.base)
        for instruction in stage.instructions:
            match instruction.name:
                case "WORKDIR":
                    folder = instruction.text
                    self.inside(f"mkdir -p {root}{folder}")
                case "COPY":
                    *sources, target = instruction.words
                    self._copy(root, folder, sources, target, instruction.options.get("from"))
                case "RUN":
                    self._run(stage.name, root, folder, instruction.text, instruction.options)

    def _workdir(self, name: str) -> str:
        if name not in self._stages:
            return "/"
        stage = self._stages[name]
        given = [each.text for each in stage.instructions if each.name == "WORKDIR"]
        return given[-1] if given else self._workdir(stage.base)

    def _copy(
        self, root: str, folder: str, sources: list[str], target: str, origin: str | None
    ) -> None:
        into = f"{root}{PurePosixPath(folder) / target}"
        if origin == "uv":
            # the host's uv in place of the image's
            self.inside(f"install -D {uv_program()} {into}")
        elif origin is not None:
            (source,) = sources
            self.inside(f"mkdir -p {into}; cp -a {self.build(origin)}{source}/. {into}/")
        else:
            self.inside(f"mkdir -p {into}; tar -x -C {into}", stdin=self._sent(sources))

    def _sent(self, sources: list[str]) -> bytes:
        """What the context sends for a COPY, as a tar file: folders by content, files by name."""
        patterns = ignore_patterns(self._context / ".dockerignore")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for source in sources:
                top = self._context / source
                files = [top] if top.is_file() else sorted(top.rglob("*"))
                for file in files:
                    path = file.relative_to(self._context).as_posix()
                    if file.is_file() and not is_ignored(path, patterns):
                        name = file.name if top.is_file() else file.relative_to(top).as_posix()
                        archive.add(file, name, filter=_of_root)
        return packed.getvalue()

    def _run(
        self, name: str, root: str, folder: str, command: str, options: dict[str, str]
    ) -> None:
        mount = options.get("mount")
        if mount is not None:
            target = dict(part.split("=") for part in mount.split(","))["target"]
            cache = subprocess.check_output(["uv", "cache", "dir"], text=True).strip()
            self.inside(
                f"mkdir -p {cache} {root}{target}; mountpoint -q {root}{target} ||"
                f" mount --bind {cache} {root}{target}"
            )
        # the registry's address, where this machine has one of its own
        variables = {
            key: value
            for key, value in os.environ.items()
            if key.startswith(("UV_", "PIP_", "SSL_")) or key in {"HTTPS_PROXY", "NO_PROXY"}
        }
        variables |= {"HOME": "/root", **self.environment(name)}
        self.inside(
            f"cd {root} && exec env -i \"$@\" chroot . sh -ec 'cd {folder} && {command}'".replace(
                '"$@"', " ".join(f"'{key}={value}'" for key, value in variables.items())
            )
        )


@dataclass
class Container:
    """A running container; `pid` is its first process, as this host numbers it."""

    process: subprocess.Popen[bytes]
    pid: int
    log: Path
    variables: dict[str, str]

    def execute(self, command: list[str], user: int = 1000) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `docker exec` does."""
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--mount", "--pid", "--root"),
                *("--setuid", str(user), "--setgid", str(user)),
                *("env", "-i", *(f"{key}={value}" for key, value in self.variables.items())),
                *("sh", "-c", 'cd /app && exec "$@"', "sh"),
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def stop(self, wait_s: float) -> int:
        """SIGTERM to its first process, as `docker stop` does; the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(timeout=wait_s)


@contextlib.contextmanager
def container(
    builder: Builder, stage: str, volume: Path, command: list[str] | None = None, **env: str
) -> Iterator[Container]:
    """Start a container of a stage; killed at the end if it still runs.

    `volume` is mounted on /data; /run/agent and /tmp are tmpfs, everything else is read-only.
    """
    image = builder.build(stage)
    volume.mkdir(parents=True)
    os.chown(volume, 1000, 1000)
    variables = {**builder.environment(stage), **env}
    chosen = command or builder.stage(stage).last("CMD").words
    setup = f"""
        mount --make-rprivate /
        mount --bind {image} {image}
        mount -o remount,bind,ro {image}
        cd {image}
        mount -t proc proc proc
        mount --bind /dev dev
        mount -t tmpfs -o uid=1000,gid=1000,mode=755 tmpfs run/agent
        mkdir run/agent/prometheus
        chown 1000:1000 run/agent/prometheus
        mount -t tmpfs tmpfs tmp
        mount --bind '{volume}' data
        exec chroot . setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs \\
            --inh-caps=-all --bounding-set=-all sh -c 'cd /app && exec "$@"' sh "$@"
    """
    log = volume.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("nsenter", "--mount", "--target", str(builder.pid)),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *("sh", "-ec", setup, "sh", "env", "-i"),
                *(f"{key}={value}" for key, value in variables.items()),
                *chosen,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Container(process, first_process(process, log), log, variables)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a container's first process, and with it the container, if it still runs.

    Not only unshare: its `--kill-child` is forgotten by the kernel when the child changes user.
    """
    if process.poll() is None:
        for pid in _children(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def why_not() -> str | None:
    """The reason why nothing can be built here; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "building the Dockerfile takes Linux and root (namespaces, overlay)"
    if any(shutil.which(name) is None for name in ("unshare", "nsenter", "setpriv")):
        return "building the Dockerfile takes util-linux"
    probe = (
        "mount -t tmpfs t /mnt && cd /mnt && mkdir u w m &&"
        " mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w m"
    )
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", probe],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        return f"no overlay in a mount namespace here: {tried.stderr.decode().strip()}"
    if shutil.which("uv") is None:
        return "the Dockerfile's commands are uv's, which is not installed"
    if python_3_12() is None:
        return "the base image's Python 3.12 is not installed"
    return None


@cache
def python_3_12() -> str | None:
    """Where a Python 3.12 is installed; None if nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for program in ("python3.12", *sorted(pyenv.glob("versions/3.12*/bin/python3.12"))):
        with contextlib.suppress(OSError):
            asked = subprocess.run(
                [program, "-c", "import sys; print(sys.base_prefix)"],
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.returncode == 0:
                return asked.stdout.strip()
    return None


def uv_program() -> str:
    """The uv on the PATH; pyenv puts a script there and knows where the program is."""
    found = shutil.which("uv")
    assert found is not None
    if Path(found).read_bytes()[:2] == b"#!":
        return subprocess.check_output(["pyenv", "which", "uv"], text=True).strip()
    return found


def _of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def first_process(process: subprocess.Popen[bytes], log: Path) -> int:
    """The process that unshare has forked: PID 1 of the container."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        # a command runs inside the image only once the image has become the root
        for pid in _children(process):
            with contextlib.suppress(FileNotFoundError):
                if str(Path(f"/proc/{pid}/root").readlink()) != "/":
                    return pid
        time.sleep(0.01)
    raise AssertionError(f"no process came up: {log.read_text()}")


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    try:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in text.split()]
