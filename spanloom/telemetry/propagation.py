"""Where our trace context goes: to hosts in `SPANLOOM_PROPAGATE_TO`, and nowhere else.

The httpx instrumentation injects headers through the global propagator, which is not told the
address. So its request hook, which runs just before in the same context, notes whether the host
may have the context, and the propagator obeys that note once.
"""

import ipaddress
import logging
from collections.abc import Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spanloom.telemetry.baggage import BaggagePropagator
from spanloom.telemetry.settings import Network
from spanloom.telemetry.tracecontext import TraceContextPropagator

_logger: Final = logging.getLogger(__name__)

_LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})

_withhold: Final[ContextVar[bool]] = ContextVar("spanloom_withhold_context", default=False)


class PropagationPolicy:
    """Which hosts may see our trace context."""

    def __init__(self, propagate_to: Iterable[str]) -> None:
        words = [word.lower() for word in propagate_to]
        self._everyone = "all" in words
        self._loopback = "loopback" in words
        self._names: set[str] = set()
        self._suffixes: tuple[str, ...] = ()
        self._networks: list[Network] = []
        self._allows_host = lru_cache(maxsize=1024)(self._decide)
        for word in words:
            if word in {"all", "loopback", "none"}:
                continue
            if word.startswith("*."):
                self._suffixes += (word[1:],)
                continue
            try:
                self._networks.append(ipaddress.ip_network(word.strip("[]"), strict=False))
            except ValueError:
                self._names.add(word.rstrip("."))

    def allows(self, url: str) -> bool:
        """Whether a request to this URL carries our trace context."""
        if self._everyone:
            return True
        try:
            host = (urlsplit(url).hostname or "").lower().rstrip(".")
        except ValueError:
            return False
        return self._allows_host(host)

    def _decide(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return self._allows_name(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return (self._loopback and address.is_loopback) or any(
            address in network for network in self._networks
        )

    def _allows_name(self, host: str) -> bool:
        if self._loopback and (host in _LOOPBACK_NAMES or host.endswith(".localhost")):
            return True
        return host in self._names or host.endswith(self._suffixes)


def strictly_w3c(propagator: TextMapPropagator) -> TextMapPropagator:
    """Put our `tracecontext` and `baggage` in the place of OpenTelemetry's; others stay.

    OTEL_PROPAGATORS was read when `opentelemetry` was imported: what it names is what is here.
    """
    if type(propagator) is TraceContextTextMapPropagator:
        return TraceContextPropagator()
    if type(propagator) is W3CBaggagePropagator:
        return BaggagePropagator()
    members = getattr(propagator, "_propagators", None)
    if type(propagator) is CompositePropagator and members is not None:
        return CompositePropagator([strictly_w3c(member) for member in members])
    return propagator


class GuardedPropagator(TextMapPropagator):
    """The configured propagators, silent for hosts that must not see the context.

    Extraction never raises: whatever a header holds, the worst result is a new trace.
    """

    def __init__(self, inner: TextMapPropagator) -> None:
        self.inner = inner

    @property
    def fields(self) -> set[str]:
        """Header names of the propagators inside."""
        return self.inner.fields

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Read the caller's context."""
        try:
            return self.inner.extract(carrier, context, getter)
        except Exception:  # telemetry never breaks the application
            _logger.debug("could not read trace context", exc_info=True)
            return Context() if context is None else context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Write our context, unless the host of this request must not have it."""
        if _withhold.get():
            _withhold.set(False)
            return
        try:
            self.inner.inject(carrier, context, setter)
        except Exception:  # telemetry never breaks the application
            _logger.debug("could not write trace context", exc_info=True)


class HttpxHooks:
    """Request hooks for the contrib httpx and httpx2 instrumentations."""

    def __init__(self, policy: PropagationPolicy, header_names: Iterable[str]) -> None:
        self._policy = policy
        self._header_names = tuple(header_names)

    def request(self, span: Span, request: Any) -> None:  # noqa: ARG002 - the hook's signature
        """Decide for one request, and drop context headers that are already on it.

        They are there after a redirect from an allowed host, or when an SDK wrote them itself.
        """
        try:
            allowed = self._policy.allows(str(request.url))
            _withhold.set(not allowed)
            if not allowed and request.headers is not None:
                for name in self._header_names:
                    request.headers.pop(name, None)
        except Exception:
            _logger.debug("could not decide on propagation", exc_info=True)
            _withhold.set(True)

    async def async_request(self, span: Span, request: Any) -> None:
        """Decide for one request of an async client."""
        self.request(span, request)
