"""The real Collector takes every committed configuration, and warns of nothing in it."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.stack.programs import ROOT, binary, collector

pytestmark = pytest.mark.stack

STATIC = "{static: {hostnames: ['127.0.0.1:1', '127.0.0.1:2']}}"
DNS = "{dns: {hostname: localhost, port: '4317', interval: 5s}}"
K8S = "{k8s: {service: collector-gateway.observability}}"


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, str]:
    """What secure.yaml needs: a certificate of our own and a file of tokens."""
    return certificate(tmp_path)


def certificate(folder: Path) -> dict[str, str]:
    """A self-signed certificate for 127.0.0.1, its key, and a token."""
    certificate, key, token = folder / "tls.crt", folder / "tls.key", folder / "tokens"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=collector",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    token.write_text("correct-horse-battery-staple\n", encoding="utf-8")
    return {
        "OTLP_TLS_CERT": str(certificate),
        "OTLP_TLS_KEY": str(key),
        "OTLP_TOKEN_FILE": str(token),
        "GATEWAY_CA": str(certificate),
        "GATEWAY_TOKEN_FILE": str(token),
    }


def validate(env: Mapping[str, str], *configs: str) -> "subprocess.CompletedProcess[str]":
    arguments = [word for config in configs for word in ("--config", config)]
    return subprocess.run(
        [binary("otelcol"), "validate", *arguments],
        cwd=ROOT, env={"PATH": os.environ["PATH"], **env}, text=True, capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("configs", "resolver"),
    [
        (["otel-collector.yaml"], None),
        (["otel-collector.yaml", "deploy/collector/secure.yaml"], None),
        (["deploy/collector/agent.yaml"], STATIC),
        (["deploy/collector/agent.yaml"], DNS),
        (["deploy/collector/agent.yaml"], K8S),
        (["deploy/collector/agent.yaml", "deploy/collector/secure.yaml"], STATIC),
        (["deploy/collector/agent.yaml", "deploy/collector/secure-agent.yaml"], STATIC),
        (["deploy/collector/gateway.yaml"], None),
        (["deploy/collector/gateway.yaml", "deploy/collector/secure.yaml"], None),
    ],
)
def test_a_configuration_is_valid_and_uses_nothing_deprecated(
    configs: list[str], resolver: str | None, secrets: dict[str, str]
) -> None:
    env = secrets if resolver is None else {**secrets, "COLLECTOR_GATEWAY_RESOLVER": resolver}

    checked = validate(env, *configs)

    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout + checked.stderr


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    """So that the test above can fail."""
    text = (ROOT / "otel-collector.yaml").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("block_on_overflow", "block_on_overfull"), encoding="utf-8")

    checked = validate({}, str(wrong))

    assert checked.returncode == 1
    assert "block_on_overfull" in checked.stderr


def test_an_agent_without_gateways_says_what_is_missing() -> None:
    checked = validate({}, "deploy/collector/agent.yaml")

    assert checked.returncode == 1
    assert "resolver" in checked.stderr


@pytest.mark.parametrize("path", ["otel-collector.yaml", "deploy/collector/agent.yaml",
                                  "deploy/collector/gateway.yaml"])  # fmt: skip
def test_a_running_collector_warns_of_nothing(path: str, tmp_path: Path) -> None:
    """`validate` starts no component; some say only then what is deprecated.

    gRPC's own warnings are left out: here nobody listens where it connects to.
    """
    made = collector(tmp_path, config=ROOT / path, COLLECTOR_GATEWAY_RESOLVER=STATIC)
    with made:
        pass

    lines = [line for line in made.log.splitlines() if '"grpc_log": true' not in line]
    warned = [line for line in lines if re.search(r"\t(warn|error)\t|deprecat", line)]
    assert len(lines) > 10
    assert warned == []
