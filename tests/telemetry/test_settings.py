import dataclasses
import inspect
import ipaddress
import re
from pathlib import Path

import pytest

from spanloom import ports
from spanloom.telemetry.settings import TelemetrySettings


def test_defaults_need_no_environment() -> None:
    """Without a variable everything goes to the local backend over HTTP, quickly and safely."""
    settings = TelemetrySettings.from_env({})

    assert settings == TelemetrySettings()
    assert settings.endpoint == f"http://127.0.0.1:{ports.OTLP_HTTP}"
    assert settings.protocols["traces"] == "http/protobuf"
    assert settings.span_batch_delay_ms == 500
    assert settings.trust == ("loopback",)
    assert settings.propagate_to == ("loopback",)
    assert settings.hash_user_id
    assert not settings.capture_content


def test_the_standard_variables_win() -> None:
    """OTEL_* decide about exporters, protocols, delays and whether anything is made."""
    settings = TelemetrySettings.from_env(
        {
            "OTEL_SDK_DISABLED": "true",
            "OTEL_TRACES_EXPORTER": "otlp, console",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "2000",
            "OTEL_BLRP_SCHEDULE_DELAY": "300",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        }
    )

    assert not settings.enabled
    assert settings.exporters == {
        "traces": ("otlp", "console"),
        "metrics": ("none",),
        "logs": ("otlp",),
    }
    assert settings.protocols == {"traces": "grpc", "metrics": "grpc", "logs": "http/protobuf"}
    assert settings.span_batch_delay_ms == 2000
    assert settings.log_batch_delay_ms == 300
    assert settings.metric_interval_ms == 1000


def test_our_own_variables_are_read() -> None:
    """SPANLOOM_* say what the standard cannot."""
    settings = TelemetrySettings.from_env(
        {
            "SPANLOOM_TRUST": "10.0.0.0/8, loopback",
            "SPANLOOM_TRUSTED_PROXIES": "192.168.0.1",
            "SPANLOOM_PROPAGATE_TO": "retrieval.internal,*.svc",
            "SPANLOOM_CAPTURE_CONTENT": "on",
            "SPANLOOM_HASH_USER_ID": "off",
            "SPANLOOM_LOG_LEVEL": "warn",
            "SPANLOOM_LOG_STEPS": "false",
            "SPANLOOM_GENAI_METRICS": "released",
            "SPANLOOM_UNTRACED_PATHS": "/live",
            "SPANLOOM_PRICES": "/etc/价格.toml",
        }
    )

    assert settings.trust == ("10.0.0.0/8", "loopback")
    assert settings.trusted_proxies == (ipaddress.ip_network("192.168.0.1/32"),)
    assert settings.propagate_to == ("loopback", "retrieval.internal", "*.svc")
    assert settings.capture_content
    assert not settings.hash_user_id
    assert settings.log_level == "WARNING"
    assert not settings.log_steps
    assert settings.genai_metric_names == "released"
    assert settings.untraced_paths == ("/live",)
    assert settings.prices == Path("/etc/价格.toml")
    assert settings.problems == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "nan"),
        ("SPANLOOM_TRUST", "everyone"),
        ("SPANLOOM_TRUST", "all,10.0.0.0/8"),
        ("SPANLOOM_TRUSTED_PROXIES", "proxy"),
        ("SPANLOOM_PROPAGATE_TO", "none,host"),
        ("SPANLOOM_LOG_LEVEL", "loud"),
        ("SPANLOOM_GENAI_METRICS", "mine"),
    ],
)
def test_a_wrong_value_is_reported_and_ignored(variable: str, value: str) -> None:
    """The default holds, and a sentence names the variable; nothing raises."""
    settings = TelemetrySettings.from_env({variable: value})

    (problem,) = settings.problems
    assert problem.startswith(f"{variable}={value!r} is ignored: ")
    assert dataclasses.replace(settings, problems=()) == TelemetrySettings()


def test_an_empty_value_is_none() -> None:
    """Set but empty counts as unset, as the OpenTelemetry specification wants."""
    assert TelemetrySettings.from_env({"SPANLOOM_TRUST": "", "OTEL_TRACES_EXPORTER": " "}) == (
        TelemetrySettings()
    )


def test_each_setting_has_a_sentence() -> None:
    """Every field is followed by a docstring that ends like a sentence."""
    source = inspect.getsource(TelemetrySettings)
    for field in dataclasses.fields(TelemetrySettings):
        found = re.search(rf"    {field.name}: .*?\n    \"\"\"(.*?)\"\"\"", source, re.DOTALL)
        assert found, field.name
        assert found[1].rstrip().endswith("."), field.name
