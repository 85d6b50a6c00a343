"""Every setting of the service: one field, one default, one sentence.

Values come from the environment (`AGENT_` and the field's name, or the usual name given as
alias) and from `.env`. `.env.example` is checked against this module by a test.
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, Self

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    computed_field,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.errors import ConfigurationError

_CHAT_MARGIN_S: Final = 15.0

Provider = Literal["offline", "openai", "anthropic", "openai_compatible"]


class Settings(BaseSettings):
    """Typed settings; construct with keyword arguments in tests."""

    model_config = SettingsConfigDict(
        env_prefix="AGENT_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    # --- addresses -----------------------------------------------------------------------
    api_host: str = Field("127.0.0.1", description="Address the API listens on.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port of the API.")
    retrieval_host: str = Field("127.0.0.1", description="Address the retrieval process uses.")
    retrieval_port: int = Field(8001, ge=0, le=65535, description="Port of the retrieval process.")
    retrieval_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Where the API finds retrieval; by default its host and port here.",
    )
    offline_llm_host: str = Field("127.0.0.1", description="Address of the offline LLM endpoint.")
    offline_llm_port: int = Field(
        8002, ge=0, le=65535, description="Port of the offline LLM endpoint."
    )

    # --- language model ------------------------------------------------------------------
    llm_provider: Provider | None = Field(
        None,
        description="Which LLM; by default the one whose key or address is set, else offline.",
    )
    llm_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("AGENT_LLM_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE"),
        pattern=r"^https?://",
        description="Address of an OpenAI-compatible endpoint (Ollama, vLLM), ending in /v1.",
    )
    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AGENT_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key for OpenAI or a compatible endpoint.",
    )
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AGENT_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="Key for Anthropic.",
    )
    llm_model: str | None = Field(
        None, description="Model that answers; by default one that fits the provider."
    )
    llm_small_model: str | None = Field(
        None, description="Cheap model that routes and reflects; by default by provider."
    )
    llm_timeout_s: float = Field(20.0, gt=0, description="Longest wait for one LLM request.")
    llm_max_output_tokens: int = Field(512, ge=1, description="Longest answer of one LLM request.")
    offline_llm_tokens_per_s: float = Field(
        0.0, ge=0, description="Output speed the offline LLM imitates; 0 answers at once."
    )

    # --- agent ---------------------------------------------------------------------------
    sub_queries: int = Field(3, ge=1, le=8, description="Searches the retrieve step fans out to.")
    retrieve_top_k: int = Field(6, ge=1, le=50, description="Passages each search returns.")
    rerank_top_k: int = Field(4, ge=1, le=20, description="Passages kept after reranking.")
    max_tool_rounds: int = Field(
        3, ge=0, le=10, description="Rounds of tool calls before answering."
    )
    max_reflections: int = Field(1, ge=0, le=5, description="Times an answer may be sent back.")
    step_attempts: int = Field(
        2, ge=1, le=5, description="Tries of one step while the LLM or retrieval fails at once."
    )
    retrieval_timeout_s: float = Field(10.0, gt=0, description="Longest wait for retrieval.")

    # --- requests ------------------------------------------------------------------------
    deadline_s: float = Field(30.0, gt=0, description="After this a request is cancelled with 504.")
    max_body_bytes: int = Field(65_536, ge=1024, description="Larger request bodies get 413.")
    cors_origins: list[str] = Field(
        default_factory=list, description="Origins a browser may call from, as a JSON list."
    )

    workers: int = Field(1, ge=1, le=64, description="Processes that share the API's port.")
    revision: str | None = Field(
        None, description="Commit that runs, as /health tells it; set in the image by its build."
    )
    retry_after_s: int = Field(
        2, ge=1, le=3600, description="Retry-After of a 503 while the LLM or retrieval is down."
    )
    shutdown_grace_s: int = Field(
        10, ge=0, le=600, description="Time running requests get to finish on SIGTERM."
    )

    # --- chat page -----------------------------------------------------------------------
    chat_host: str = Field("127.0.0.1", description="Address the chat page listens on.")
    chat_port: int = Field(8501, ge=1, le=65535, description="Port of the chat page.")
    chat_api_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Where the chat page finds the API; by default its host and port here.",
    )
    chat_timeout_s: float | None = Field(
        None,
        gt=0,
        description="Longest wait of the chat page; by default 15 s more than the deadline.",
    )
    chat_trace_url: str = Field(
        "http://127.0.0.1:16686/trace/{trace_id}",
        pattern=r"^https?://\S*\{trace_id\}",
        description="Where a trace opens from the chat page: Jaeger's page, or spanloom's.",
    )

    # --- storage -------------------------------------------------------------------------
    data_dir: Path = Field(Path("var"), description="Folder for everything the service writes.")
    database_url: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AGENT_DATABASE_URL", "DATABASE_URL"),
        description="Session memory, postgresql://… or sqlite:///…; by default sessions.sqlite"
        " in the data folder.",
    )
    database_pool_size: int = Field(
        4, ge=1, le=100, description="Most connections to PostgreSQL a worker has, but for one."
    )
    database_timeout_s: float = Field(
        5.0, gt=0, le=60, description="Longest wait for PostgreSQL before a request gets 503."
    )
    database_start_s: float = Field(
        30.0, ge=0, description="Longest wait for PostgreSQL at the start."
    )
    vector_store_path: Path | None = Field(
        None,
        validation_alias=AliasChoices("AGENT_VECTOR_STORE_PATH", "VECTOR_STORE_PATH"),
        description="The search index; by default the folder index in the data folder.",
    )
    corpus_path: Path | None = Field(
        None, description="Folder of articles to index; by default the shipped corpus."
    )

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know computed_field's order
    @property
    def provider(self) -> Provider:
        """The LLM in force."""
        if self.llm_provider is not None:
            return self.llm_provider
        if self.llm_base_url is not None:
            return "openai_compatible"
        if self.openai_api_key is not None:
            return "openai"
        if self.anthropic_api_key is not None:
            return "anthropic"
        return "offline"

    @property
    def retrieval_base_url(self) -> str:
        """Where the API finds retrieval."""
        return self.retrieval_url or f"http://{self.retrieval_host}:{self.retrieval_port}"

    @property
    def offline_llm_base_url(self) -> str:
        """The offline endpoint as an OpenAI client wants it."""
        return f"http://{self.offline_llm_host}:{self.offline_llm_port}/v1"

    @property
    def chat_api_base_url(self) -> str:
        """Where the chat page finds the API."""
        return self.chat_api_url or f"http://{self.api_host}:{self.api_port}"

    @property
    def chat_patience_s(self) -> float:
        """How long the chat page waits for a whole answer."""
        return self.chat_timeout_s or self.deadline_s + _CHAT_MARGIN_S

    @property
    def index_path(self) -> Path:
        """The search index in force."""
        return self.vector_store_path or self.data_dir / "index"

    @model_validator(mode="after")
    def _let_the_service_be_late_first(self) -> Self:
        if self.chat_patience_s <= self.deadline_s:
            raise ValueError(
                "AGENT_CHAT_TIMEOUT_S must be longer than AGENT_DEADLINE_S, so that it is the"
                " service that says what was late"
            )
        return self


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once; ConfigurationError names every one that is wrong."""
    _refuse_misspelt({*os.environ, *dotenv_values(".env", encoding="utf-8")})
    try:
        return Settings()
    except SettingsError as error:  # a list that is not JSON
        raise ConfigurationError(f"A setting cannot be read: {error}") from error
    except ValidationError as error:
        # without the values: a key may be among them
        wrong = "; ".join(
            f"{_variable(each['loc'])}: {each['msg']}" if each["loc"] else each["msg"]
            for each in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"Settings that cannot work: {wrong}") from None


def _refuse_misspelt(given: Iterable[str]) -> None:
    """A name one letter off would pass in silence; AGENT_ names of other programs may be there."""
    known = {f"AGENT_{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in given if name.startswith("AGENT_") and name not in known)
    meant = {name: get_close_matches(name, known, n=1, cutoff=0.85) for name in unknown}
    wrong = "; ".join(f"{name}, did you mean {near[0]}?" for name, near in meant.items() if near)
    if wrong:
        raise ConfigurationError(f"Not a setting: {wrong}")


def _variable(location: tuple[int | str, ...]) -> str:
    """The environment variable of a field, as a validation error locates it."""
    name = str(location[0])
    return f"AGENT_{name.upper()}" if name in Settings.model_fields else name
