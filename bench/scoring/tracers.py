"""The tracers that the card knows: what to install for each, and how its spans are read."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from overhead.tracers import PEERS

from .conventions import (
    ALL,
    GENAI,
    LANGFUSE,
    OPENINFERENCE,
    OPENLIT,
    OPENLLMETRY,
    SPANLOOM,
    Convention,
)

ROOT: Final = Path(__file__).resolve().parents[2]
_PINNED: Final = ("opentelemetry-sdk", "opentelemetry-instrumentation-httpx", "httpx2")
"""As they are here, in every environment."""
_APPLICATION: Final = ("langgraph", "langchain-core", "langchain", "langchain-openai")


@dataclass(frozen=True)
class Tracer:
    """A tracer, and by which conventions its spans are read."""

    name: str
    """What it is called on the command line; also how `scoring.inside.switches` finds it."""
    title: str
    requirements: tuple[str, ...] = ()
    conventions: tuple[Convention, ...] = ALL

    @property
    def is_here(self) -> bool:
        """Whether it runs in the environment that the card runs in."""
        return not self.requirements

    @property
    def version(self) -> str:
        """What of it is installed."""
        if self.name == "spanloom":
            return version("spanloom")
        if self.name in PEERS:
            return self.requirements[0].partition("==")[2]
        return ", ".join(self.requirements)


_READ_AS: Final = {
    "traceloop": (GENAI, OPENLLMETRY),
    "openlit": (GENAI, OPENLIT),
    "otel-genai": (GENAI,),
    "openinference": (OPENINFERENCE,),
    "langfuse": (LANGFUSE,),
}
TRACERS: Final = {
    "none": Tracer("none", "no tracer"),
    "spanloom": Tracer("spanloom", "Spanloom", conventions=(GENAI, SPANLOOM)),
} | {
    name: Tracer(name, PEERS[name].name, PEERS[name].requirements, conventions)
    for name, conventions in _READ_AS.items()
}


def named(name: str, packages: Sequence[str]) -> Tracer:
    """Find a tracer of the card, or make one of `module:Class`; LookupError where it is neither."""
    if name in TRACERS:
        return TRACERS[name]
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute.isidentifier()):
        raise LookupError(
            f"no tracer {name!r}: there are {', '.join(TRACERS)}, and module:Class of any"
            " instrumentor (with --with PACKAGE for what it has to have installed)"
        )
    return Tracer(name, attribute, tuple(packages))


def requirements(tracer: Tracer, langgraph: str | None) -> list[str]:
    """Everything in a tracer's environment; `langgraph` of None is the release that is here."""
    if langgraph is None:
        application = [f"{name}=={version(name)}" for name in _APPLICATION]
    else:  # whatever of LangChain goes with it
        application = [f"langgraph=={langgraph}", *_APPLICATION[1:]]
    own = [one for one in tracer.requirements if one not in _APPLICATION]
    if tracer.name == "spanloom":
        own = _of_spanloom()
    return [*own, *application, *(f"{name}=={version(name)}" for name in _PINNED)]


def _of_spanloom() -> list[str]:
    """What Spanloom depends on; it is itself on the path, as it is in the tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["cost"], *extras["tokens"]]
