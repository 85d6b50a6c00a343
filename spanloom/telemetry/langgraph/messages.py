"""What LangChain's messages say about a model's answer: tokens, model, id, finish reasons.

Pure reading of attributes and dictionaries; nothing of the content is taken.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

_FINISH_KEYS: Final = ("finish_reason", "stop_reason", "done_reason", "stopReason")
_MODEL_KEYS: Final = ("model_name", "model", "model_id")
_OWN_ID_PREFIXES: Final = ("run-", "run--", "lc_")
"""Ids that LangChain invents where the provider sent none."""
_HOUR_CACHE_WRITE_KEY: Final = "ephemeral_1h_input_tokens"
_CACHE_WRITE_KEYS: Final = (
    # Anthropic splits cache writes by lifetime and then leaves cache_creation at 0
    "cache_creation",
    "ephemeral_5m_input_tokens",
    _HOUR_CACHE_WRITE_KEY,
)


class Answer:
    """What is known of one answer so far; filled from a whole message or chunk by chunk."""

    __slots__ = (
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "finish_reasons",
        "id",
        "input_tokens",
        "is_cached",
        "is_refused",
        "model",
        "output_tokens",
        "reasoning",
    )

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cache_read: int | None = None
        self.cache_write: int | None = None
        self.cache_write_1h: int | None = None
        """The part of `cache_write` that lives an hour, which has a price of its own."""
        self.is_cached = False
        self.is_refused = False
        """Whether it came whole, and its SDK would not hand it on."""
        self.reasoning: int | None = None
        self.model: str | None = None
        self.id: str | None = None
        self.finish_reasons: list[str] = []

    def add_chunk(self, message: Any) -> bool:
        """Take in one streamed chunk; return whether it carries output of the model."""
        if usage := getattr(message, "usage_metadata", None):
            self._add_usage(usage)
        if metadata := message.response_metadata:
            self._take_metadata(metadata)
            if not self.finish_reasons and (reason := finish_reason(metadata)):
                self.finish_reasons = [reason]
        if self.id is None:
            self._take_id(message.id)
        return bool(
            message.content
            or getattr(message, "tool_call_chunks", None)
            or message.additional_kwargs
        )

    def take_result(self, messages: Iterable[Any], llm_output: Mapping[str, Any] | None) -> None:
        """Take in a whole result: one message for each choice, and the provider's summary.

        Each choice repeats the usage of the whole request, so it is read once.
        """
        reasons: list[str] = []
        for index, message in enumerate(messages):
            metadata = message.response_metadata
            if index == 0:
                if usage := getattr(message, "usage_metadata", None):
                    self._forget_usage()  # the merged message has what the chunks had
                    self.is_cached = "total_cost" in usage  # by LangChain: nothing was used now
                    if not self.is_cached:
                        self._add_usage(usage)
                self._take_metadata(metadata)
                self._take_id(metadata.get("id") or message.id)
            if reason := finish_reason(metadata):
                reasons.append(reason)
        if reasons:
            self.finish_reasons = reasons
        if llm_output:
            self._take_metadata(llm_output)
            self._take_id(llm_output.get("id"))
            if self.input_tokens is None and (usage := llm_output.get("token_usage")):
                self.input_tokens = _count(usage.get("prompt_tokens"))
                self.output_tokens = _count(usage.get("completion_tokens"))

    def take_refused(self, exc: BaseException) -> None:
        """Take in an answer that came whole, and that its SDK would not hand on.

        OpenAI's does so with JSON that reached the token limit: the longest answers there are.
        """
        completion = getattr(exc, "completion", None)
        usage = getattr(completion, "usage", None)
        if usage is None or self.input_tokens is not None:
            return
        self.is_refused = True
        self.input_tokens = _count(getattr(usage, "prompt_tokens", None))
        self.output_tokens = _count(getattr(usage, "completion_tokens", None))
        given = getattr(usage, "prompt_tokens_details", None)
        self.cache_read = _count(getattr(given, "cached_tokens", None))
        taken = getattr(usage, "completion_tokens_details", None)
        self.reasoning = _count(getattr(taken, "reasoning_tokens", None))
        self._take_metadata({"model": getattr(completion, "model", None)})
        self._take_id(getattr(completion, "id", None))
        choices = getattr(completion, "choices", None) or ()
        reasons = [getattr(choice, "finish_reason", None) for choice in choices]
        self.finish_reasons = [reason for reason in reasons if isinstance(reason, str)]

    def _forget_usage(self) -> None:
        self.input_tokens = self.output_tokens = None
        self.cache_read = self.cache_write = self.cache_write_1h = self.reasoning = None

    def _add_usage(self, usage: Mapping[str, Any]) -> None:
        """Add what one message reports; a provider may spread it over several chunks."""
        taken, given = usage.get("input_tokens"), usage.get("output_tokens")
        if self.input_tokens is self.output_tokens is None and type(taken) is type(given) is int:
            self.input_tokens, self.output_tokens = taken, given  # nearly always
        else:
            self.input_tokens = _plus(self.input_tokens, taken)
            self.output_tokens = _plus(self.output_tokens, given)
        if details := usage.get("input_token_details"):
            for key, value in details.items():
                if key.endswith("cache_read"):  # OpenAI's service tiers put their name before it
                    self.cache_read = _plus(self.cache_read, value)
                elif key in _CACHE_WRITE_KEYS:
                    self.cache_write = _plus(self.cache_write, value)
                    if key == _HOUR_CACHE_WRITE_KEY:
                        self.cache_write_1h = _plus(self.cache_write_1h, value)
        if details := usage.get("output_token_details"):
            for key, value in details.items():
                if key.endswith("reasoning"):
                    self.reasoning = _plus(self.reasoning, value)

    def _take_metadata(self, metadata: Mapping[str, Any]) -> None:
        if self.model is None:
            for key in _MODEL_KEYS:
                if isinstance(model := metadata.get(key), str) and model:
                    self.model = model
                    break

    def _take_id(self, response_id: object) -> None:
        if isinstance(response_id, str) and not response_id.startswith(_OWN_ID_PREFIXES):
            self.id = response_id or self.id


def finish_reason(metadata: Mapping[str, Any]) -> str | None:
    """Why a choice ended, under whichever name its provider uses."""
    for key in _FINISH_KEYS:
        if isinstance(reason := metadata.get(key), str) and reason:
            return reason
    return None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _plus(total: int | None, value: object) -> int | None:
    count = _count(value)
    return total if count is None else (total or 0) + count
