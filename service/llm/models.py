"""LangChain chat models for the provider in force: a large one that answers, a small that routes.

SDK packages are imported when their provider is chosen (langchain-anthropic alone takes four
seconds). Retries are the graph's business and switched off in the SDKs, so that they do not
multiply. Streams always report their tokens.
"""

import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from service.errors import ConfigurationError
from service.settings import Provider, Settings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

# Models that answer at once unless told to think: with 512 output tokens (the default limit) a
# reasoning model can spend them all before its first word. Names as in the model profiles that
# langchain-openai and langchain-anthropic ship.
DEFAULT_MODELS: Final[dict[Provider, tuple[str, str]]] = {
    "offline": ("offline-large", "offline-small"),
    "openai": ("gpt-5.4-mini", "gpt-5.4-nano"),
    "anthropic": ("claude-sonnet-4-6", "claude-haiku-4-5"),
}
NO_KEY: Final = "no-key-needed"


class ModelSettingsError(ConfigurationError):
    """A setting the provider needs is missing; the message names it."""


@dataclass(frozen=True, slots=True)
class ChatModels:
    """The models in force. `close` when done; they cannot be used after that."""

    large: "BaseChatModel"
    small: "BaseChatModel"
    large_name: str
    small_name: str
    provider: Provider
    closers: tuple[Callable[[], Awaitable[None]], ...] = field(default=(), repr=False)

    async def close(self) -> None:
        """Close the HTTP connections. May be called twice."""
        for closer in self.closers:
            await closer()


def check_model_settings(settings: Settings) -> None:
    """Say what is missing without importing a provider's package, which takes seconds.

    Raises:
        ModelSettingsError: a key, an address or a model name is missing.
    """
    provider = settings.provider
    if provider == "anthropic" and settings.anthropic_api_key is None:
        raise ModelSettingsError("The anthropic provider needs a key: set ANTHROPIC_API_KEY.")
    if provider == "openai" and settings.openai_api_key is None:
        raise ModelSettingsError("The openai provider needs a key: set OPENAI_API_KEY.")
    if provider == "openai_compatible" and settings.llm_base_url is None:
        raise ModelSettingsError(
            "An OpenAI-compatible provider needs its address, ending in /v1: set OPENAI_BASE_URL."
        )
    _names(settings)


def build_chat_models(settings: Settings) -> ChatModels:
    """The chat models that `settings` ask for.

    Raises:
        ModelSettingsError: a key, an address or a model name is missing.
    """
    check_model_settings(settings)
    provider = settings.provider
    large, small = _names(settings)
    if settings.anthropic_api_key is not None and provider == "anthropic":
        return _anthropic(settings, large, small, key=settings.anthropic_api_key)
    base_url: str | None = settings.llm_base_url
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else None
    if provider == "offline":
        base_url, key = settings.offline_llm_base_url, None
    return _openai(settings, large, small, base_url=base_url, key=key or NO_KEY)


def _names(settings: Settings) -> tuple[str, str]:
    defaults = DEFAULT_MODELS.get(settings.provider)
    large = settings.llm_model or (defaults[0] if defaults else None)
    if large is None:
        raise ModelSettingsError(
            f"No model is known for {settings.llm_base_url}: set AGENT_LLM_MODEL to one that "
            "runs there."
        )
    return large, settings.llm_small_model or (defaults[1] if defaults else large)


def _openai(
    settings: Settings, large: str, small: str, *, base_url: str | None, key: str
) -> ChatModels:
    import httpx2  # noqa: PLC0415 -- see the module's docstring
    from langchain_openai import ChatOpenAI  # noqa: PLC0415
    from langchain_openai.chat_models.base import BaseChatOpenAI  # noqa: PLC0415

    local = settings.provider == "offline"
    # Own clients, since the library's are shared by the process and so cannot be closed. A proxy
    # from the environment must not catch what goes to our own process.
    options: dict[str, Any] = {
        "timeout": settings.llm_timeout_s,
        "verify": ssl.create_default_context(),
        "trust_env": not local,
    }
    if not local and (proxy := os.environ.get("OPENAI_PROXY")):
        options["proxy"] = proxy
    sync_client = httpx2.Client(**options)
    async_client = httpx2.AsyncClient(**options)

    # OpenAI's own `max_completion_tokens` is unknown to many servers that speak its protocol;
    # the base class sends the `max_tokens` they all take.
    chat_class = BaseChatOpenAI if settings.provider == "openai_compatible" else ChatOpenAI

    def model(name: str) -> BaseChatOpenAI:
        return chat_class(
            model=name,
            base_url=base_url,
            api_key=SecretStr(key),
            timeout=settings.llm_timeout_s,
            # The client's timeout is between two pieces, too. LangChain's own goes through
            # `asyncio.wait_for`, which in Python 3.11 forgets a cancellation that comes together
            # with a piece: a deadline or a hang-up would be lost, and the model write on.
            stream_chunk_timeout=0,
            max_retries=0,
            # Without this a stream from any address but OpenAI's own reports no tokens.
            stream_usage=True,
            max_tokens=settings.llm_max_output_tokens,
            openai_proxy=None,
            http_client=sync_client,
            http_async_client=async_client,
        )

    async def close() -> None:
        sync_client.close()
        await async_client.aclose()

    return ChatModels(model(large), model(small), large, small, settings.provider, (close,))


def _anthropic(settings: Settings, large: str, small: str, *, key: SecretStr) -> ChatModels:
    from service.llm.anthropic_chat import OwnedChatAnthropic  # noqa: PLC0415

    def model(name: str) -> OwnedChatAnthropic:
        return OwnedChatAnthropic(
            model=name,
            api_key=key,
            timeout=settings.llm_timeout_s,
            max_retries=0,
            stream_usage=True,
            max_tokens=settings.llm_max_output_tokens,
        )

    both = model(large), model(small)
    return ChatModels(*both, large, small, settings.provider, tuple(each.aclose for each in both))
