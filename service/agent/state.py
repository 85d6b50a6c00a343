"""What flows between the nodes: plain JSON types only.

The checkpointer writes the state to disk, and LangGraph's strict msgpack mode loads only a
short list of safe types: dicts, lists, strings and numbers are always on it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypedDict, cast

from langchain_core.messages import AIMessage

from service.retrieval_client import Passage

Difficulty = Literal["simple", "moderate", "hard"]
DIFFICULTIES: Final[tuple[Difficulty, ...]] = ("simple", "moderate", "hard")

MAX_KEPT_MESSAGES: Final = 40
"""Messages a session keeps on disk; older ones are forgotten."""


class Message(TypedDict):
    """One earlier message of the session."""

    role: Literal["user", "assistant"]
    content: str


class ToolResult(TypedDict):
    """One tool call and what came back."""

    name: str
    arguments: dict[str, Any]
    content: str
    failed: bool


def append_bounded(kept: list[Message], new: list[Message]) -> list[Message]:
    """Reducer: the session's messages, oldest dropped first."""
    return [*kept, *new][-MAX_KEPT_MESSAGES:]


def collect(found: list[Passage], new: list[Passage] | None) -> list[Passage]:
    """Reducer: the union of parallel searches; None starts a new turn with nothing."""
    if new is None:
        return []
    return [*found, *new]


class AgentState(TypedDict):
    """The graph's state. `messages` lives as long as the session, the rest for one run."""

    messages: Annotated[list[Message], append_bounded]
    question: str
    standalone: str
    """The question as it reads without the session before it."""
    difficulty: Difficulty
    sub_queries: list[str]
    found: Annotated[list[Passage], collect]
    passages: list[Passage]
    tool_results: list[ToolResult]
    answer: str
    sources: list[str]
    missing: str
    reflections: int


class SearchInput(TypedDict):
    """What one branch of the fan-out gets."""

    query: str


def new_turn(question: str) -> AgentState:
    """The input of a run: the question, and everything of the last run wiped."""
    update: dict[str, Any] = {
        "question": question,
        "standalone": question,
        "difficulty": "moderate",
        "sub_queries": [],
        "found": None,
        "passages": [],
        "tool_results": [],
        "answer": "",
        "sources": [],
        "missing": "",
        "reflections": 0,
    }
    # an update, not a whole state: no `messages`, and None resets `found`
    return cast("AgentState", update)


@dataclass(slots=True)
class Usage:
    """Tokens all model calls of one run reported."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    def add(self, message: AIMessage) -> None:
        """Count one model call; a call that reports nothing counts nothing."""
        if (usage := message.usage_metadata) is not None:
            self.input_tokens += usage["input_tokens"]
            self.output_tokens += usage["output_tokens"]

    def add_refused(self, exc: Exception) -> None:
        """Count a call whose answer came whole, and which OpenAI's SDK does not hand on."""
        usage = getattr(getattr(exc, "completion", None), "usage", None)
        if usage is not None:
            self.input_tokens += usage.prompt_tokens
            self.output_tokens += usage.completion_tokens


@dataclass(frozen=True, slots=True)
class RunContext:
    """What belongs to one run and must never reach a checkpoint."""

    usage: Usage = field(default_factory=Usage)
