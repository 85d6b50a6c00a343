import ipaddress
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.instrumentation.asgi import asgi_getter

from spanloom.telemetry import is_trusted
from spanloom.telemetry.propagation import strictly_w3c
from spanloom.telemetry.settings import TelemetrySettings
from spanloom.telemetry.trust import (
    _LINK_KEY,
    MAX_HEADER_LENGTH,
    TrustMiddleware,
    TrustPolicy,
)

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def policy(trust: str = "", proxies: str = "") -> TrustPolicy:
    return TrustPolicy(
        TelemetrySettings.from_env({"SPANLOOM_TRUST": trust, "SPANLOOM_TRUSTED_PROXIES": proxies})
    )


def scope(peer: object, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "client": peer, "headers": list(headers)}


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("10.0.0.1", False),
        ("192.168.1.5", False),
        ("8.8.8.8", False),
        ("fe80::1%eth0", False),
        ("testclient", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_loopback_is_trusted_by_default(address: str, trusted: bool) -> None:
    """IPv4, IPv6 and mapped loopback peers, and nobody else."""
    assert policy().trusts(scope((address, 1234))) is trusted


@pytest.mark.parametrize("peer", [None, (), (None, 1), ("", 0)])
def test_an_unknown_peer_is_not_trusted(peer: object) -> None:
    """A Unix socket has no address to decide on."""
    assert policy().trusts(scope(peer)) is False
    assert policy("all").trusts(scope(peer)) is True


def test_settings_widen_and_narrow_trust() -> None:
    """`all`, `none` and networks mean what they say."""
    assert policy("all").trusts(scope(("8.8.8.8", 1)))
    assert not policy("none").trusts(scope(("127.0.0.1", 1)))
    listed = policy("10.0.0.0/8,fd00::/8")
    assert listed.trusts(scope(("10.1.2.3", 1)))
    assert listed.trusts(scope(("fd00::5", 1)))
    assert not listed.trusts(scope(("127.0.0.1", 1)))
    assert not listed.trusts(scope(("11.1.2.3", 1)))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted"),
    [
        ("127.0.0.1", b"8.8.8.8", True),  # no listed proxy: the header is not believed
        ("10.0.0.1", b"127.0.0.1", True),  # the listed proxy says so
        ("10.0.0.1", b"127.0.0.1, 8.8.8.8", False),  # the caller wrote the first part itself
        ("10.0.0.1", b"8.8.8.8, 127.0.0.1, 10.0.0.1", True),  # the last one no proxy of ours
        ("10.0.0.1", b"nonsense", False),
        ("10.0.0.1", b"", False),
        ("8.8.8.8", b"127.0.0.1", False),  # a stranger pretends to be a proxy
    ],
)
def test_forwarded_addresses_count_from_listed_proxies_only(
    peer: str, forwarded: bytes, trusted: bool
) -> None:
    """X-Forwarded-For is read from the right, past our own proxies."""
    decided = policy(proxies="10.0.0.0/24").trusts(
        scope((peer, 1), (b"x-forwarded-for", forwarded))
    )

    assert decided is trusted


def test_a_proxy_that_names_nobody_is_not_trusted() -> None:
    """Who is behind a listed proxy is unknown without the header, even if it is on loopback."""
    behind = policy(proxies="127.0.0.1")

    assert not behind.trusts(scope(("127.0.0.1", 1)))


async def pass_through(incoming: dict[str, Any], decided: TrustPolicy) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)

    async def nothing(*_: Any) -> Any:
        return {}

    await TrustMiddleware(app, decided)(incoming, nothing, nothing)
    return seen


CONTEXT = ((b"traceparent", PARENT), (b"TraceState", b"a=b"), (b"baggage", b"tenant=7"))


async def test_untrusted_callers_lose_their_context_and_keep_the_rest() -> None:
    """All three W3C headers go, in any spelling; other headers and the decision stay."""
    seen = await pass_through(scope(("8.8.8.8", 1), *CONTEXT, (b"accept", b"*/*")), policy())

    assert seen["headers"] == [(b"accept", b"*/*")]
    assert not is_trusted(seen)


async def test_trusted_callers_keep_their_context() -> None:
    """Nothing is touched for a trusted caller but the case of names, which ASGI wants lower."""
    seen = await pass_through(scope(("127.0.0.1", 1), *CONTEXT), policy())

    assert seen["headers"] == [(name.lower(), value) for name, value in CONTEXT]
    assert is_trusted(seen)


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([b"foo@=1", b"0=2"], "foo@=1,0=2"),
        ([b"a=" + b"v" * 256, b"b=" + b"v" * 256], ""),  # more than is worth its storage
        ([b"@=1"], ""),
    ],
)
async def test_a_strangers_state_is_kept_with_its_link(lines: list[bytes], state: str) -> None:
    """All lines of it, unless they are long."""
    headers = [(b"Traceparent", PARENT), *((b"tracestate", line) for line in lines)]
    propagator = propagate.get_global_textmap()
    propagate.set_global_textmap(strictly_w3c(propagator))
    try:
        seen = await pass_through(scope(("8.8.8.8", 1), *headers), policy())
    finally:
        propagate.set_global_textmap(propagator)

    assert seen[_LINK_KEY].trace_state.to_header() == state
    assert seen["headers"] == []


async def test_what_contrib_cannot_decode_is_rewritten_and_the_rest_is_not() -> None:
    """Its getter raises on such a value, whoever sent it, and turns others into control codes."""
    kept = [(b"a", b"\xff"), (b"b", "租户\\x".encode()), (b"c", b"\\x"), (b"d", b"")]
    broken = [(b"user-agent", b"\xff\\x"), (b"host", b"\xff\\n")]
    for peer in ("127.0.0.1", "8.8.8.8"):
        seen = await pass_through(scope((peer, 1), *kept, *broken), policy())

        assert seen["headers"][: len(kept)] == kept
        assert asgi_getter.get(seen, "user-agent") == ["\xff\\x"]
        assert asgi_getter.get(seen, "host") == ["\xff\\n"]


@pytest.mark.parametrize("name", sorted(MAX_HEADER_LENGTH))
async def test_headers_that_are_too_long_are_dropped(name: bytes) -> None:
    """Length is checked before anything is parsed, over all lines of a header together."""
    half = b"x" * (MAX_HEADER_LENGTH[name] // 2 + 1)
    seen = await pass_through(
        scope(("127.0.0.1", 1), (name, half), (name, half), (b"accept", b"*/*")), policy()
    )

    assert seen["headers"] == [(b"accept", b"*/*")]


async def test_a_policy_that_fails_trusts_nobody() -> None:
    """An error in the decision costs the caller's context, not the request."""

    class Broken(TrustPolicy):
        def trusts(self, scope: Any) -> bool:
            raise RuntimeError

    seen = await pass_through(
        scope(("127.0.0.1", 1), *CONTEXT), Broken(TelemetrySettings(trust=("all",)))
    )

    assert seen["headers"] == []
    assert not is_trusted(seen)


async def test_other_scopes_pass() -> None:
    """Lifespan reaches the application, and what it announces is heard."""
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(scope["type"])
        await send({"type": "lifespan.shutdown.complete"})

    async def flush() -> None:
        events.append("flushed")

    async def send(message: Any) -> None:
        events.append(message["type"])

    async def receive() -> Any:
        return {}

    layer = TrustMiddleware(
        app, policy(), on_startup=lambda: events.append("started"), on_shutdown=flush
    )
    await layer({"type": "lifespan"}, receive, send)

    assert events == ["started", "lifespan", "flushed", "lifespan.shutdown.complete"]


async def test_a_flush_that_fails_stops_no_shutdown() -> None:
    """The server hears that the application has shut down, as in a loop that is not asyncio's."""
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "lifespan.shutdown"}
        await send({"type": "lifespan.shutdown.complete"})

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def flush() -> None:
        raise RuntimeError("no running event loop")

    await TrustMiddleware(app, policy(), on_shutdown=flush)({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.shutdown.complete"]


def test_a_scope_nobody_judged_is_not_trusted() -> None:
    """Without the wrapper the answer is no."""
    assert not is_trusted({"type": "http"})


def test_networks_are_parsed_once() -> None:
    """A proxy may be written as a network or as one address."""
    settings = TelemetrySettings.from_env({"SPANLOOM_TRUSTED_PROXIES": "10.0.0.1,fd00::/64"})

    assert settings.trusted_proxies == (
        ipaddress.ip_network("10.0.0.1/32"),
        ipaddress.ip_network("fd00::/64"),
    )
