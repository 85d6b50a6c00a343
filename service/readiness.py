"""Whether what the service depends on answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypedDict

import httpx2

from service.retrieval_client import RetrievalClient
from service.sessions import Sessions
from service.settings import Settings
from spanloom.telemetry import get_logger

_TIMEOUT_S: Final = 2.0
_UNAUTHORIZED: Final = (401, 403)

_log = get_logger(__name__)


class DependencyState(TypedDict):
    """One dependency as /ready shows it."""

    ok: bool
    latency_ms: int


@dataclass(frozen=True, slots=True)
class Readiness:
    """The checks of one process."""

    retrieval: RetrievalClient
    sessions: Sessions
    settings: Settings
    http: httpx2.AsyncClient

    async def check(self) -> dict[str, DependencyState]:
        """Every dependency's state, all asked at once."""
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "retrieval": lambda: self.retrieval.check(timeout_s=_TIMEOUT_S),
            "llm": self._check_llm,
            "sessions": self.sessions.check,
        }
        states = await asyncio.gather(*(_state(name, check) for name, check in checks.items()))
        return dict(zip(checks, states, strict=True))

    async def _check_llm(self) -> None:
        """Ask an endpoint of our own for its models.

        A hosted provider is not asked: its outages pass by themselves and are answered with
        503 per request, while a readiness that follows them would restart healthy pods.
        """
        base_url = llm_base_url(self.settings)
        if base_url is None:
            return
        key = self.settings.openai_api_key
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        response = await self.http.get(f"{base_url.rstrip('/')}/models", headers=headers)
        # An endpoint that wants another key for this list is up all the same.
        if response.status_code not in _UNAUTHORIZED:
            response.raise_for_status()


def llm_base_url(settings: Settings) -> str | None:
    """The LLM endpoint that belongs to the installation; None for a hosted provider."""
    if settings.provider == "offline":
        return settings.offline_llm_base_url
    if settings.provider == "openai_compatible":
        return settings.llm_base_url
    return None


async def _state(name: str, check: Callable[[], Awaitable[None]]) -> DependencyState:
    started = time.perf_counter()
    ok = True
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await check()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the dependency is not ready
        ok = False
        _log.warning("not_ready", dependency=name, error_type=type(exc).__name__)
    return DependencyState(ok=ok, latency_ms=round((time.perf_counter() - started) * 1000))
