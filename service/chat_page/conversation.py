"""What was said on the page, and how it is put into words."""

from dataclasses import dataclass, field
from uuid import uuid4

from service.chat_page.client import Answered, Begun, Event, Failed, Piece, Redraft

_MS_PER_S = 1000


@dataclass(slots=True)
class Turn:
    """A question and what has come of it so far."""

    question: str
    text: str = ""
    """The answer as far as it has come, also when it broke off."""
    trace_id: str = ""
    answer: Answered | None = None
    failure: Failed | None = None

    def take(self, event: Event) -> None:
        """Add what has just come."""
        match event:
            case Begun(trace_id):
                self.trace_id = trace_id
            case Piece(text):
                self.text += text
            case Redraft():
                self.text = ""
            case Answered():
                self.answer = event
                self.text = event.text
                self.trace_id = event.trace_id
            case Failed():
                self.failure = event
                self.trace_id = event.trace_id

    @property
    def is_open(self) -> bool:
        """Neither answered nor failed: the page was left or stopped meanwhile."""
        return self.answer is None and self.failure is None


@dataclass(slots=True)
class Conversation:
    """The turns of one session, as far as this page has seen them; the service remembers more."""

    session_id: str = field(default_factory=lambda: uuid4().hex[:12])
    turns: list[Turn] = field(default_factory=list)


def caption(answer: Answered) -> str:
    """How long it took and how many tokens, as one line."""
    return (
        f"{answer.latency_ms / _MS_PER_S:.1f} s · "
        f"{answer.input_tokens:,} → {answer.output_tokens:,} tokens"
    )


def trace_link(trace_id: str, url: str) -> str:
    """Markdown for a trace, `url` with {trace_id} in it; empty without an id."""
    return f"trace [`{trace_id}`]({url.replace('{trace_id}', trace_id)})" if trace_id else ""


def harmless(markdown: str) -> str:
    """The text without images: one in an answer would send what its address says to a stranger.

    What the model writes may follow from a document somebody planted.
    """
    return markdown.replace("![", "!\\[")
