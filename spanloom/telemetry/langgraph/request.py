"""What a request to a model asks for, read from the call, LangChain's parameters and the model.

Which attributes a model class has is found out once per class: asking a pydantic object for an
attribute it lacks costs more than the rest of a span's start.
"""

import functools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from opentelemetry.util.types import AttributeValue

from spanloom import semconv
from spanloom.telemetry.langgraph import classify


class _Parameter(NamedTuple):
    """A request parameter: its attribute, its names in calls and classes, and its types."""

    attribute: str
    listed: str
    """Its name among LangChain's `ls_*` parameters."""
    names: tuple[str, ...]
    types: tuple[type, ...]


_PARAMETERS: Final = (
    _Parameter(
        semconv.GEN_AI_REQUEST_TEMPERATURE, "ls_temperature", ("temperature",), (int, float)
    ),
    _Parameter(
        semconv.GEN_AI_REQUEST_MAX_TOKENS,
        "ls_max_tokens",
        ("max_tokens", "max_completion_tokens"),
        (int,),
    ),
    _Parameter(semconv.GEN_AI_REQUEST_TOP_P, "ls_top_p", ("top_p",), (int, float)),
    _Parameter(semconv.GEN_AI_REQUEST_TOP_K, "ls_top_k", ("top_k",), (int,)),
    _Parameter(semconv.GEN_AI_REQUEST_SEED, "ls_seed", ("seed",), (int,)),
)
_ASKED: Final = frozenset(
    {name for parameter in _PARAMETERS for name in parameter.names} | {"response_format"}
)
_URL_FIELDS: Final = (
    # where a client keeps the address it really calls; the SDK client first, as it has resolved
    # environment variables and defaults
    "root_async_client",
    "root_client",
    "azure_endpoint",
    "openai_api_base",
    "anthropic_api_url",
    "base_url",
    "endpoint_url",
)
_FALLBACK_MODULE: Final = "langchain_core.language_models.chat_models"


class ModelClass(NamedTuple):
    """What is known of a chat-model class."""

    says_itself: bool
    """Whether it reports provider and model by code of its own."""
    parameters: tuple[tuple[str, str, tuple[str, ...], tuple[type, ...], tuple[str, ...]], ...]
    """Each of `_PARAMETERS`, and after it under which of its names instances have it."""
    url_fields: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def model_class(cls: Any) -> ModelClass:
    """Look at a chat-model class, the first time it is seen."""
    fields = getattr(cls, "model_fields", {})

    def present(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name in fields or hasattr(cls, name))

    owner = next(base for base in cls.__mro__ if "_get_ls_params" in vars(base))
    return ModelClass(
        says_itself=owner.__module__ != _FALLBACK_MODULE,
        parameters=tuple((*parameter, present(parameter.names)) for parameter in _PARAMETERS),
        url_fields=present(_URL_FIELDS),
    )


def server(model: Any, known: ModelClass) -> tuple[str | None, int | None]:
    """Host and port that the model's client calls, where it is truly known."""
    for name in known.url_fields:
        value = getattr(model, name, None)
        if value is not None:
            address, port = classify.server_of(str(getattr(value, "base_url", value)))
            if address is not None:
                return address, port
    return None, None


def add_parameters(
    attributes: dict[str, AttributeValue],
    model: Any,
    known: ModelClass,
    call: Mapping[str, Any],
    params: Mapping[str, Any],
) -> None:
    """Add what shapes the answer: the call's own value before the model's.

    `params` are LangChain's `ls_*` parameters, which already weigh one against the other.
    """
    is_asked = not call.keys().isdisjoint(_ASKED)
    for attribute, listed, names, types, present in known.parameters:
        value = params.get(listed)
        if is_asked:
            for name in names:
                value = call.get(name, value)
        if value is None:
            for name in present:
                value = getattr(model, name, None)
                if value is not None:
                    break
        if value is not None and isinstance(value, types) and value.__class__ is not bool:
            attributes[attribute] = cast("AttributeValue", value)
    if stop := call.get("stop") or params.get("ls_stop"):
        attributes[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = (
            [stop] if isinstance(stop, str) else [str(text) for text in stop]
        )
    if is_asked:
        _add_shape(attributes, call)


def _add_shape(attributes: dict[str, AttributeValue], call: Mapping[str, Any]) -> None:
    response_format = call.get("response_format")
    if isinstance(response_format, dict) and "json" in str(response_format.get("type")):
        attributes[semconv.GEN_AI_OUTPUT_TYPE] = "json"
