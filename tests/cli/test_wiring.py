import json
import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanloom.cli.listeners import find_holder, free_ports, is_taken
from spanloom.cli.processes import ProcessFile, ProcessSpec
from spanloom.cli.wiring import (
    BackendPorts,
    Wiring,
    backend_environment,
    first_request,
    wire,
)
from spanloom.errors import ConfigurationError

API = ProcessSpec("api", ("{python}", "{port}", "{api_port}"), 9000, "API_PORT", "/health")
INDEX = ProcessSpec("index", ("{index_port}", "{api_port}"), 9001, "INDEX_PORT", "/health")


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_listener_makes_a_port_taken_and_is_found(listener: int) -> None:
    """The message about a taken port can say who holds it."""
    assert is_taken(listener)
    holder = find_holder(listener)
    if Path("/proc/net/tcp").exists():
        assert holder is not None
        assert holder.pid == os.getpid()
        assert "python" in holder.command


def test_a_listener_on_all_addresses_counts() -> None:
    """0.0.0.0 and 127.0.0.1 are one port to whoever wants to listen."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        assert is_taken(sock.getsockname()[1])


def test_free_ports_are_free_and_different() -> None:
    """Nothing listens on them, and no outgoing connection will be given one."""
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert not any(map(is_taken, ports))
    assert max(ports) < 32768
    assert find_holder(ports[0]) is None


def test_every_taken_port_is_reported_at_once(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who frees one port does not want to hear of the next one only then."""
    free = free_ports(3)
    monkeypatch.delenv("MAKELEVEL", raising=False)  # `make test` sets it
    with socket.socket() as second:
        second.bind(("127.0.0.1", 0))
        second.listen()
        taken = second.getsockname()[1]
        monkeypatch.setenv("API_PORT", str(taken))
        monkeypatch.setenv("INDEX_PORT", str(free[2]))
        backend = BackendPorts(free[0], free[1], listener)
        with pytest.raises(ConfigurationError) as caught:
            wire(ProcessFile((API, INDEX)), backend, {}, automatic=False)

    lines = str(caught.value).split("\n")
    assert lines[0] == "nothing was started:"
    assert re.fullmatch(
        rf"  port {listener}, which the backend \(query and page\) needs, is held by "
        r"(pid \d+ \(.*\)|another process): set SPANLOOM_QUERY_PORT",
        lines[1],
    )
    assert lines[2].startswith(f"  port {taken}, which api needs, is held by ")
    assert lines[2].endswith(": set API_PORT")
    assert lines[3:] == ["or let free ports be chosen for everything: spanloom up --ports auto"]


def test_who_typed_make_is_told_what_to_type(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under make the command `spanloom` may not be on the path."""
    monkeypatch.setenv("MAKELEVEL", "1")
    free = free_ports(2)
    with pytest.raises(ConfigurationError, match=r'make run ARGS="--ports auto"$'):
        wire(ProcessFile(()), BackendPorts(*free, listener), {}, automatic=False)


def test_one_port_for_two_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings with the same number would fail later and less clearly."""
    free = free_ports(4)
    monkeypatch.setenv("API_PORT", str(free[3]))
    monkeypatch.setenv("INDEX_PORT", str(free[3]))
    with pytest.raises(
        ConfigurationError, match=f"port {free[3]} is wanted by api and by index: set INDEX_PORT"
    ):
        wire(ProcessFile((API, INDEX)), BackendPorts(*free[:3]), {}, automatic=False)


def test_automatic_ports_reach_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are free ones, and each process learns its own and the others'."""
    monkeypatch.setenv("API_PORT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://elsewhere:4318/v1/traces")
    monkeypatch.setenv("SET", "by hand")
    file = ProcessFile((API, INDEX), {"DATA": "{data_dir}", "SET": "no", "DOT": "no"})
    wiring = wire(file, BackendPorts(1, 2, 3), {"DOT": "in .env"}, automatic=True)

    ports = [wiring.ports["api"], wiring.ports["index"]]
    backend = wiring.backend
    assert len({*ports, backend.otlp_grpc, backend.otlp_http, backend.query}) == 5
    assert wiring.command(INDEX, Path("/d")) == [str(ports[1]), str(ports[0])]
    assert wiring.command(API, Path("/d"))[1:] == [str(ports[0]), str(ports[0])]
    env = wiring.environment({"DOT": "in .env"}, Path("/d"))
    assert (env["API_PORT"], env["INDEX_PORT"]) == (str(ports[0]), str(ports[1]))
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://127.0.0.1:{backend.otlp_http}"
    assert env["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" not in env
    assert (env["DATA"], env["SET"], env.get("DOT")) == ("/d", "by hand", None)


def test_the_user_s_batch_delay_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what nobody set gets our default."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "5000")
    assert backend_environment(BackendPorts(1, 2, 3))["OTEL_BSP_SCHEDULE_DELAY"] == "5000"
    monkeypatch.delenv("OTEL_BSP_SCHEDULE_DELAY")
    assert backend_environment(BackendPorts(1, 2, 3))["OTEL_BSP_SCHEDULE_DELAY"] == "500"


def test_the_request_to_paste_survives_a_shell() -> None:
    """A quote in the question does not end the command, and the traceparent is valid."""
    body = '{"query": "What\'s a KV cache? 它省下什么？ $HOME `id`"}'
    request = first_request("http://127.0.0.1:8000", "/chat", body)

    words = shlex.split(request.curl)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/chat"]
    assert json.loads(words[words.index("-d") + 1]) == json.loads(body)
    assert f"traceparent: {request.traceparent}" in words
    assert re.fullmatch(rf"00-{request.trace_id}-[0-9a-f]{{16}}-01", request.traceparent)
    assert first_request("http://x", "/", "{}").trace_id != request.trace_id
    with pytest.raises(ConfigurationError, match=r"the body in processes.toml is not JSON"):
        first_request("http://x", "/", "{")


def test_a_wiring_knows_addresses() -> None:
    """Addresses are what people click and what the service is told."""
    wiring = Wiring(BackendPorts(1, 2, 3), ProcessFile((API,)), {"api": 9000})

    assert wiring.url(API) == "http://127.0.0.1:9000"
    assert wiring.backend.query_url == "http://127.0.0.1:3"
