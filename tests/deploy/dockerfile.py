"""Reads a Dockerfile and a .dockerignore, as far as ours use the language."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]


@dataclass
class Instruction:
    """One instruction: its options (`--from=build`), and what follows them."""

    name: str
    options: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments, of the exec form or divided as a shell would."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, name: str) -> Instruction:
        """The instruction of that name that holds."""
        return [each for each in self.instructions if each.name == name][-1]


@dataclass
class Healthcheck:
    """A HEALTHCHECK: its times in seconds and the command."""

    times: dict[str, float]
    command: list[str]


def stages(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """Every stage by name, in order."""
    found: dict[str, Stage] = {}
    for instruction in _instructions(path.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            base, _, name = instruction.words
            found[name] = Stage(name, base)
        else:
            [*found.values()][-1].instructions.append(instruction)
    return found


def environment(
    all_stages: dict[str, Stage], name: str, base: dict[str, str], **build_args: str
) -> dict[str, str]:
    """The variables of a stage, with those of the stages it stands on."""
    stage = all_stages[name]
    values = environment(all_stages, stage.base, base) if stage.base in all_stages else dict(base)
    arguments: dict[str, str] = {}
    for instruction in stage.instructions:
        for word in instruction.words if instruction.name in {"ARG", "ENV"} else ():
            name, _, value = word.partition("=")
            known = arguments | values
            value = build_args.get(name, value) if instruction.name == "ARG" else value
            expanded = re.sub(r"\$(\w+)", lambda match, known=known: known[match[1]], value)
            (arguments if instruction.name == "ARG" else values)[name] = expanded
    return values


def healthcheck(stage: Stage) -> Healthcheck:
    """The HEALTHCHECK of a stage."""
    instruction = stage.last("HEALTHCHECK")
    kind, _, command = instruction.text.partition(" ")
    assert kind == "CMD"
    times = {
        name: float(value.removesuffix("s"))
        for name, value in instruction.options.items()
        if value.endswith("s")
    }
    return Healthcheck(times, json.loads(command))


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether a .dockerignore keeps a path of the context out: the last pattern that fits wins."""
    ignored = False
    for line in patterns:
        pattern = line.removeprefix("!").strip("/")
        parents = [str(parent) for parent in PurePosixPath(path).parents if parent.name]
        if any(_fits(candidate, pattern) for candidate in [path, *parents]):
            ignored = not line.startswith("!")
    return ignored


def ignore_patterns(path: Path = ROOT / ".dockerignore") -> list[str]:
    """The lines of a .dockerignore that say something."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _fits(path: str, pattern: str) -> bool:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = re.sub(
        r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|.",
        lambda match: parts.get(match[0], match[0] if match[0][0] == "[" else re.escape(match[0])),
        pattern,
    )
    return re.fullmatch(expression, path) is not None


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        name, _, rest = line.strip().partition(" ")
        options = {}
        while match := re.match(r"--([\w-]+)=(\S+)\s*", rest):
            options[match[1]] = match[2]
            rest = rest[match.end() :]
        if name:
            found.append(Instruction(name, options, rest.strip()))
    return found
