"""`processes.toml`: which processes `spanloom up` starts, and how it knows they are well."""

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanloom.errors import ConfigurationError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DOTENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*")
BACKEND = "backend"
"""The embedded backend's name among the processes; a file cannot use it."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request a newcomer tries first: POST `body` (JSON text) to `path`."""

    path: str
    body: str


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One `[[process]]`; `port` is the default, `port_env` the variable that overrides it."""

    name: str
    command: tuple[str, ...]
    port: int
    port_env: str
    health: str
    description: str = ""
    request: Request | None = None

    @property
    def placeholder(self) -> str:
        """The name under which commands refer to this process's port: `api_port`."""
        return self.name.replace("-", "_") + "_port"


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """All processes in starting order, and environment variables all of them get by default."""

    processes: tuple[ProcessSpec, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def load_processes(path: Path) -> ProcessFile:
    """Read and check a file; ConfigurationError names what is wrong in it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    try:
        return _file(document)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _file(document: Mapping[str, Any]) -> ProcessFile:
    _only(document, {"process", "env"}, "the file")
    tables = document.get("process")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError("there is no [[process]] table")
    processes = tuple(_process(table) for table in tables)
    _unique("name", [process.name for process in processes])
    _unique("port_env", [process.port_env for process in processes])
    if sum(process.request is not None for process in processes) > 1:
        raise ConfigurationError("more than one process has a request")
    env = document.get("env", {})
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise ConfigurationError("[env] must be a table of texts")
    return ProcessFile(processes, env)


def _process(table: Mapping[str, Any]) -> ProcessSpec:
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BACKEND:
        raise ConfigurationError(
            f"process name {name!r} must be lowercase letters, digits and -, and not {BACKEND!r}"
        )
    where = f"process {name!r}"
    allowed = {"name", "command", "port", "port_env", "health", "description", "request"}
    _only(table, allowed, where)
    command = table.get("command")
    if not (isinstance(command, list) and command and all(isinstance(a, str) for a in command)):
        raise ConfigurationError(f"{where}: command must be a list of texts")
    port = table.get("port")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 2**16:
        raise ConfigurationError(f"{where}: port must be a number from 1 to 65535")
    request = table.get("request")
    if request is not None:
        _only(request, {"path", "body"}, f"{where}: request")
    return ProcessSpec(
        name=name,
        command=tuple(command),
        port=port,
        port_env=_text(table, "port_env", where),
        health=_text(table, "health", where),
        description=str(table.get("description", "")),
        request=request and Request(_text(request, "path", where), _text(request, "body", where)),
    )


def _only(table: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise ConfigurationError(f"{where} has unknown keys: {', '.join(unknown)}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{where}: {key} must be a text")
    return value


def _unique(what: str, values: list[str]) -> None:
    doubled = sorted({value for value in values if values.count(value) > 1})
    if doubled:
        raise ConfigurationError(f"{what} {', '.join(doubled)} occurs more than once")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace each `{name}`; an unknown name is a ConfigurationError that lists the known ones."""

    def replace(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            known = ", ".join(f"{{{name}}}" for name in sorted(values))
            raise ConfigurationError(
                f"{match[0]} in processes.toml is not known: {known} are"
            ) from None

    return _PLACEHOLDER.sub(replace, text)


def placeholders(
    file: ProcessFile, process_ports: Mapping[str, int], data_dir: Path
) -> dict[str, str]:
    """What `{python}`, `{data_dir}` and each `{NAME_port}` stand for."""
    values = {"python": sys.executable, "data_dir": str(data_dir)}
    for process in file.processes:
        values[process.placeholder] = str(process_ports[process.name])
    return values


def port_in_force(process: ProcessSpec, dotenv: Mapping[str, str]) -> int:
    """The port from the environment, from `.env`, or from the file, the first that is there."""
    text = os.environ.get(process.port_env) or dotenv.get(process.port_env)
    if not text:
        return process.port
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**16:
        raise ConfigurationError(f"{process.port_env}={text} is not a port from 1 to 65535")
    return int(text)


def read_dotenv(path: Path) -> dict[str, str]:
    """Variables of a `.env` file; {} where there is none.

    The processes read it themselves. `up` reads it too, because a port it hands them through the
    environment would silently win over the one written there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    values = {}
    for line in lines:
        match = _DOTENV_LINE.fullmatch(line)
        if match is None:
            continue
        value = match[2]
        if value[:1] in {'"', "'"} and value[:1] in value[1:]:
            value = value[1 : value.index(value[0], 1)]
        else:
            value = re.split(r"\s+#|^#", value, maxsplit=1)[0]
        values[match[1]] = value
    return values
