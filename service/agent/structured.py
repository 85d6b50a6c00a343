"""Answers of a given JSON shape, from any provider, in one function."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable
from opentelemetry import trace

from service.agent.state import Usage
from service.errors import as_unavailable
from service.settings import Provider
from spanloom.telemetry import get_logger

_UNPARSED_ATTRIBUTE: Final = "agent.structured_output.fallback"
_REFUSED_STATUSES: Final = (400, 422)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StructuredModel:
    """A model bound to one JSON schema."""

    name: str
    runnable: Runnable[LanguageModelInput, Any]

    @classmethod
    def bind(
        cls, model: BaseChatModel, schema: dict[str, Any], *, provider: Provider
    ) -> "StructuredModel":
        """Bind `schema` the way the provider supports it.

        OpenAI and compatible endpoints take it as `response_format`; Anthropic's older models
        know forced tool calls only, and its newer ones still do.
        """
        method: Literal["function_calling", "json_schema"] = (
            "function_calling" if provider == "anthropic" else "json_schema"
        )
        runnable = model.with_structured_output(schema, method=method, include_raw=True)
        return cls(schema["title"], runnable)

    async def ask(self, messages: list[BaseMessage], usage: Usage) -> dict[str, Any]:
        """The answer as a dict; empty when the model did not keep to the schema.

        An empty answer is a model's weakness, not an outage: the caller goes on with its
        defaults, and the current span says so. An outage raises.
        """
        try:
            reply = await self.runnable.ainvoke(messages)
        except Exception as exc:
            if as_unavailable(exc) is not None or not _is_model_weakness(exc):
                raise
            usage.add_refused(exc)
            return self._fall_back(type(exc).__name__)
        raw, parsed = reply["raw"], reply["parsed"]
        if isinstance(raw, AIMessage):
            usage.add(raw)
        if isinstance(parsed, dict):
            return parsed
        return self._fall_back("unparsed")

    def _fall_back(self, reason: str) -> dict[str, Any]:
        trace.get_current_span().set_attribute(_UNPARSED_ATTRIBUTE, reason)
        _log.warning("structured_output_fallback", schema=self.name, reason=reason)
        return {}


def _is_model_weakness(exc: Exception) -> bool:
    """The endpoint knows no schemas (400, 422), or the SDK gave up on what the model wrote."""
    if getattr(exc, "status_code", None) in _REFUSED_STATUSES:
        return True
    return type(exc).__name__ in {
        "LengthFinishReasonError",
        "ContentFilterFinishReasonError",
        "OutputParserException",
        "ValidationError",
        "JSONDecodeError",
    }
