import base64
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from spanloom.telemetry import TelemetrySettings
from spanloom.telemetry.exporters import create_otlp_exporter
from spanloom.telemetry.otlp_session import OtlpSession


class Server(http.server.ThreadingHTTPServer):
    """Notes the request line and the Authorization header of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_netrc_file_is_read_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its password goes on every request; the file is not looked for again."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with OtlpSession() as session:
        session.post(server.url, b"x").raise_for_status()
        netrc.unlink()
        session.post(server.url, b"x").raise_for_status()
    expected = f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert server.got == [("/v1/traces", expected)] * 2


def test_a_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy gets the whole address, at the second request as at the first."""
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1/traces"))
    with OtlpSession() as session:
        for _ in range(2):
            session.post("http://collector.invalid/v1/traces", b"x").raise_for_status()
    assert server.got == [("http://collector.invalid/v1/traces", None)] * 2


def test_certificates_are_those_requests_would_take(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE counts, and an exporter's own certificate where it says nothing."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/some/bundle.pem")
    for own in (True, "/own.pem"):
        stock, ours = requests.Session(), OtlpSession()
        stock.verify = ours.verify = own
        expected = stock.merge_environment_settings(server.url, {}, None, None, None)["verify"]
        ours.post(server.url, b"x").raise_for_status()
        assert ours.verify == expected
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with OtlpSession() as session:
        session.verify = "/own.pem"
        session.post(server.url, b"x").raise_for_status()
        assert session.verify == "/own.pem"


def test_the_environment_is_asked_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests an exporter sends: this is why the session exists."""
    asked = []
    monkeypatch.setattr("spanloom.telemetry.otlp_session.get_netrc_auth", asked.append)
    monkeypatch.setattr("requests.sessions.get_netrc_auth", asked.append)
    with OtlpSession() as session:
        for _ in range(3):
            session.post(server.url, b"x").raise_for_status()
    assert asked == [server.url]
    assert len(server.got) == 3


def test_exporters_have_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal's, unless a provider of credentials makes the session."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url.removesuffix("/v1/traces"))
    settings = TelemetrySettings.from_env()
    for signal in ("traces", "logs", "metrics"):
        exporter = create_otlp_exporter(signal, settings)  # type: ignore[arg-type]
        assert isinstance(exporter._client._transport._session, OtlpSession)
        exporter.shutdown()
