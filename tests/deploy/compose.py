"""Reads docker-compose.yml without an engine: variables put in, profiles applied, all in long form.

Only what our file uses of the language; tests/stack/test_compose.py holds the result against the
loader of docker compose itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts import stack_tools

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
PROFILES = ("offline", "chat", "small", "full")
PASSWORDS = {"POSTGRES_PASSWORD": "p@ss/word 'quoted'", "GRAFANA_PASSWORD": "another"}
FULL = ("offline", "chat", "full")
SMALL = ("offline", "chat", "small")

_REFERENCE = re.compile(r"\$\{(\w+)(?:(:?[-?])((?:[^${}]|\$\{[^{}]*\})*))?\}")


class MissingError(Exception):
    """A required variable is not there; the text is what compose would say."""


@dataclass(frozen=True)
class Mount:
    """What a container sees at `target`."""

    source: str
    """A path of the repository, or the name of a volume."""
    target: str
    read_only: bool

    @property
    def is_file(self) -> bool:
        """Whether it comes from the repository."""
        return self.source.startswith("./")


def project(*profiles: str, **variables: str) -> dict[str, Any]:
    """The file as compose sees it with deploy/versions.env, passwords, profiles and `variables`."""
    values = {**stack_tools.versions(), **PASSWORDS, **variables}
    # in this order, as compose does: what a profile leaves out may miss a variable all the same
    return _active(_filled(yaml.safe_load(FILE.read_text(encoding="utf-8")), values), profiles)


def services(*profiles: str, **variables: str) -> dict[str, dict[str, Any]]:
    """The services of those profiles by name."""
    found: dict[str, dict[str, Any]] = project(*profiles, **variables)["services"]
    return found


def environment(service: dict[str, Any]) -> dict[str, str]:
    """What a container's environment has besides its image's; what is not set anywhere is not."""
    given = service.get("environment", {})
    return {name: str(value) for name, value in given.items() if value is not None}


def mounts(service: dict[str, Any]) -> list[Mount]:
    """Volumes and files, of the short form SOURCE:TARGET[:ro]."""
    found = []
    for line in service.get("volumes", []):
        source, target, *mode = line.split(":")
        found.append(Mount(source, target, mode == ["ro"]))
    return found


def networks(service: dict[str, Any]) -> dict[str, set[str]]:
    """Each network a container is on, with the names others find it by there but its own."""
    given = service.get("networks", [])
    if isinstance(given, list):
        return {name: set() for name in given}
    return {name: set((options or {}).get("aliases", [])) for name, options in given.items()}


def reachable(all_services: dict[str, dict[str, Any]], name: str) -> dict[str, str]:
    """Host names that a container can use, each with the service it leads to."""
    own = networks(all_services[name])
    found = {}
    for other, service in all_services.items():
        for network, aliases in networks(service).items():
            if network in own:
                found |= dict.fromkeys({other, *aliases}, other)
    return found


def published(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Host address, host port, container port of what the host can reach."""
    found = []
    for line in service.get("ports", []):
        host, port, target = line.split(":")
        found.append((host, port, target))
    return found


def references() -> dict[str, set[str]]:
    """Every variable of the file with what stands behind its name (`:-default`, `:?message`)."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: dict[str, set[str]] = {}
    waiting = [code]
    while waiting:
        for name, kind, rest in _REFERENCE.findall(waiting.pop()):
            found.setdefault(name, set()).add(kind + rest)
            waiting.append(rest)
    return found


def _active(raw: dict[str, Any], profiles: tuple[str, ...]) -> dict[str, Any]:
    chosen = {
        name: service
        for name, service in raw["services"].items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }
    return {**raw, "services": chosen}


def _filled(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, values) for item in node]
    return expanded(node, values) if isinstance(node, str) else node


def expanded(text: str, values: dict[str, str] | None = None) -> str:
    """A text with its variables put in."""
    known = values or {}

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if known.get(name):
            return known[name]
        if kind == ":?":
            raise MissingError(f"required variable {name} is missing a value: {rest}")
        return expanded(rest or "", known)

    return _REFERENCE.sub(value, text)
