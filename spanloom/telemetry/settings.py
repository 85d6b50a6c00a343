"""Every setting of the telemetry library: one field, one default, one sentence.

The standard `OTEL_*` variables are honoured and win; what they cannot say has a `SPANLOOM_*`
variable. A wrong value never stops the application: it is reported once by a warning in the log,
and the default holds.
"""

import dataclasses
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

from spanloom import ports
from spanloom.telemetry.genai_metrics import MetricNames
from spanloom.telemetry.pricing import PRICES_VARIABLE

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Protocol = Literal["http/protobuf", "grpc"]
Signal = Literal["traces", "metrics", "logs"]

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_CONTENT_LIMIT: Final = 4_096
_LEAST_CONTENT_LIMIT: Final = 64
_OUR_CONTENT_VARIABLE: Final = "SPANLOOM_CAPTURE_CONTENT"
_STANDARD_CONTENT_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CONTENT_VARIABLES: Final = (
    _OUR_CONTENT_VARIABLE,
    _STANDARD_CONTENT_VARIABLE,
    "SPANLOOM_CONTENT_LIMIT",
)
_CONTENT_MODES: Final = {
    "no_content": False,
    "event_only": False,
    "span_only": True,
    "span_and_event": True,
}
_LEAST_SPOOL_BYTES: Final = 1024 * 1024
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Typed settings; `from_env()` reads them, keyword arguments set them in tests."""

    enabled: bool = True
    """Whether traces, metrics and OTLP logs are made at all (not OTEL_SDK_DISABLED)."""
    endpoint: str = f"http://127.0.0.1:{ports.OTLP_HTTP}"
    """Where OTLP over HTTP goes when no OTEL_EXPORTER_OTLP_* endpoint is set."""
    grpc_endpoint: str = f"http://127.0.0.1:{ports.OTLP_GRPC}"
    """Where OTLP over gRPC goes when that protocol is chosen and no endpoint is set."""
    exporters: Mapping[Signal, tuple[str, ...]] = field(
        default_factory=lambda: {"traces": ("otlp",), "metrics": ("otlp",), "logs": ("otlp",)}
    )
    """Exporters of each signal (OTEL_{TRACES,METRICS,LOGS}_EXPORTER): otlp, console, none or an
    installed one's entry point."""
    protocols: Mapping[Signal, Protocol] = field(
        default_factory=lambda: {
            "traces": "http/protobuf",
            "metrics": "http/protobuf",
            "logs": "http/protobuf",
        }
    )
    """OTLP protocol of each signal (OTEL_EXPORTER_OTLP_PROTOCOL or its _TRACES_ … form)."""
    span_batch_delay_ms: float = 500
    """Longest time a finished span waits to be sent (OTEL_BSP_SCHEDULE_DELAY)."""
    log_batch_delay_ms: float = 1_000
    """Longest time a log record waits to be sent (OTEL_BLRP_SCHEDULE_DELAY)."""
    metric_interval_ms: float = 10_000
    """Time between two exports of metrics (OTEL_METRIC_EXPORT_INTERVAL)."""
    shutdown_timeout_s: float = 5.0
    """Longest time that flushing at exit may take, whatever the backend does."""
    trust: tuple[str, ...] = ("loopback",)
    """Whose trace context is continued (SPANLOOM_TRUST): loopback, all, none, or networks."""
    trusted_proxies: tuple[Network, ...] = ()
    """Proxies whose X-Forwarded-For is believed (SPANLOOM_TRUSTED_PROXIES), as networks."""
    propagate_to: tuple[str, ...] = ("loopback",)
    """Hosts that get our trace context (SPANLOOM_PROPAGATE_TO): listed names, `*.suffix` and
    networks besides loopback; `all`; or `none`."""
    capture_content: bool = False
    """Whether prompts, answers, arguments and results are written on spans
    (SPANLOOM_CAPTURE_CONTENT, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT); a no of either
    holds."""
    content_limit: int = DEFAULT_CONTENT_LIMIT
    """Most characters of each captured text, a sixteenth of those of an attribute
    (SPANLOOM_CONTENT_LIMIT)."""
    redact_content: Callable[[str], str] | None = None
    """A function that each captured text goes through after the redaction of secrets."""
    hash_user_id: bool = True
    """Whether user ids are hashed before they are written (SPANLOOM_HASH_USER_ID)."""
    log_level: str = "INFO"
    """Least severity that is logged (SPANLOOM_LOG_LEVEL)."""
    log_steps: bool = True
    """Whether each agent step writes one log line with its duration (SPANLOOM_LOG_STEPS)."""
    genai_metric_names: MetricNames = "newest"
    """Vocabulary of the gen_ai.* metrics (SPANLOOM_GENAI_METRICS): newest or released."""
    untraced_paths: tuple[str, ...] = ("/health", "/ready", "/metrics")
    """Paths of the service that get no spans (SPANLOOM_UNTRACED_PATHS)."""
    prices: Path | None = None
    """A TOML file with prices of models that no public table has (SPANLOOM_PRICES)."""
    inflight: bool = True
    """Whether spans that stay open are announced, and a heartbeat is sent (SPANLOOM_INFLIGHT)."""
    inflight_after_s: float = 1.0
    """Seconds a span has to be open to be announced (SPANLOOM_INFLIGHT_AFTER)."""
    reaped_after_s: float | None = None
    """Seconds of silence after which a `spanloom reap` behind the Collector ends this process's
    open spans, its --reap-after (SPANLOOM_REAPED_AFTER); unset where none runs."""
    spool_dir: Path | None = None
    """Folder where spans and logs wait safe from a crash (SPANLOOM_SPOOL_DIR); unset for none."""
    spool_max_bytes: int = 64 * 1024 * 1024
    """Most bytes a process may keep there before the oldest go (SPANLOOM_SPOOL_MAX_BYTES)."""
    spool_fsync: bool = False
    """Whether each span also survives a power loss, at great cost (SPANLOOM_SPOOL_FSYNC)."""
    problems: tuple[str, ...] = ()
    """Sentences about variables that could not be read; logged by `setup`."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "TelemetrySettings":
        """Read the environment; an empty value counts as unset."""
        reader = _Reader(os.environ if environ is None else environ)
        defaults = cls()
        values: dict[str, Any] = {
            "enabled": not reader.get("OTEL_SDK_DISABLED", _boolean, default=False),
            "exporters": {
                signal: reader.get(
                    f"OTEL_{signal.upper()}_EXPORTER", _words, default=defaults.exporters[signal]
                )
                for signal in defaults.exporters
            },
            "protocols": {signal: reader.protocol(signal) for signal in defaults.protocols},
            "capture_content": reader.content() is True,
            "trust": reader.get("SPANLOOM_TRUST", _trust, default=defaults.trust),
            "trusted_proxies": reader.get(
                "SPANLOOM_TRUSTED_PROXIES", _networks, default=defaults.trusted_proxies
            ),
            "propagate_to": reader.get(
                "SPANLOOM_PROPAGATE_TO", _propagate_to, default=defaults.propagate_to
            ),
        }
        for name, variable, parse in _PLAIN:
            values[name] = reader.get(variable, parse, default=getattr(defaults, name))
        return dataclasses.replace(
            defaults, **values, problems=tuple(dict.fromkeys(reader.problems))
        )


class _Reader:
    """Reads variables one by one and collects what was wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def get(self, variable: str, parse: Callable[[str], T], *, default: T) -> T:
        text = self._environ.get(variable, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as exc:
            self.problems.append(f"{variable}={text!r} is ignored: {exc}")
            return default

    def content(self) -> bool | None:
        """Whether content may be captured; None where nobody says so, no where anybody does."""
        standard = self.get(_STANDARD_CONTENT_VARIABLE, _content_mode, default="")
        if standard == "event_only":
            self.problems.append(
                f"{_STANDARD_CONTENT_VARIABLE}=EVENT_ONLY captures nothing: content is written on "
                "spans (SPAN_ONLY), never as events"
            )
        choices = {
            self.get(_OUR_CONTENT_VARIABLE, _boolean, default=None),
            _CONTENT_MODES.get(standard),
        }
        return None if choices == {None} else False not in choices

    def protocol(self, signal: Signal) -> Protocol:
        default: Protocol = "http/protobuf"
        general = self.get("OTEL_EXPORTER_OTLP_PROTOCOL", _protocol, default=default)
        return self.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", _protocol, default=general)


def content_choice(environ: Mapping[str, str]) -> bool | None:
    """Whether the environment lets content be captured; None where it says nothing."""
    return _Reader(environ).content()


def _content_mode(text: str) -> str:
    lowered = text.lower()
    if lowered in _TRUE | _FALSE:  # what the variable was before it had modes
        return "span_only" if lowered in _TRUE else "no_content"
    if lowered not in _CONTENT_MODES:
        raise ValueError(f"write one of {', '.join(mode.upper() for mode in _CONTENT_MODES)}")
    return lowered


def _content_limit(text: str) -> int:
    number = int(text)
    if number < _LEAST_CONTENT_LIMIT:
        raise ValueError(f"write a number of characters from {_LEAST_CONTENT_LIMIT} on")
    return number


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("write true or false")


def _milliseconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError("write a positive number of milliseconds")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError("write a positive number of seconds")
    return number


def _spool_bytes(text: str) -> int:
    number = int(text)
    if number < _LEAST_SPOOL_BYTES:
        raise ValueError(f"write a number of bytes from {_LEAST_SPOOL_BYTES} on")
    return number


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(word, strict=False) for word in _words(text))


def _trust(text: str) -> tuple[str, ...]:
    words = _words(text.lower())
    for word in words:
        if word not in {"loopback", "all", "none"}:
            ipaddress.ip_network(word, strict=False)
    if len(words) > 1 and not {"all", "none"}.isdisjoint(words):
        raise ValueError("all and none stand alone")
    return words


def _propagate_to(text: str) -> tuple[str, ...]:
    words = _words(text.lower())
    if "none" in words:
        if len(words) > 1:
            raise ValueError("none stands alone")
        return ()
    return words if "loopback" in words else ("loopback", *words)


def _protocol(text: str) -> Protocol:
    if text not in {"http/protobuf", "grpc"}:
        raise ValueError("write http/protobuf or grpc")
    return cast("Protocol", text)


def _level(text: str) -> str:
    level = {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(text.upper(), text.upper())
    if level not in LEVELS:
        raise ValueError(f"write one of {', '.join(LEVELS)}")
    return level


def _metric_names(text: str) -> MetricNames:
    if text not in {"newest", "released"}:
        raise ValueError("write newest or released")
    return cast("MetricNames", text)


_PLAIN: Final[tuple[tuple[str, str, Callable[[str], Any]], ...]] = (
    ("span_batch_delay_ms", "OTEL_BSP_SCHEDULE_DELAY", _milliseconds),
    ("log_batch_delay_ms", "OTEL_BLRP_SCHEDULE_DELAY", _milliseconds),
    ("metric_interval_ms", "OTEL_METRIC_EXPORT_INTERVAL", _milliseconds),
    ("content_limit", "SPANLOOM_CONTENT_LIMIT", _content_limit),
    ("hash_user_id", "SPANLOOM_HASH_USER_ID", _boolean),
    ("log_level", "SPANLOOM_LOG_LEVEL", _level),
    ("log_steps", "SPANLOOM_LOG_STEPS", _boolean),
    ("genai_metric_names", "SPANLOOM_GENAI_METRICS", _metric_names),
    ("untraced_paths", "SPANLOOM_UNTRACED_PATHS", _words),
    ("prices", PRICES_VARIABLE, Path),
    ("inflight", "SPANLOOM_INFLIGHT", _boolean),
    ("inflight_after_s", "SPANLOOM_INFLIGHT_AFTER", _seconds),
    ("reaped_after_s", "SPANLOOM_REAPED_AFTER", _seconds),
    ("spool_dir", "SPANLOOM_SPOOL_DIR", Path),
    ("spool_max_bytes", "SPANLOOM_SPOOL_MAX_BYTES", _spool_bytes),
    ("spool_fsync", "SPANLOOM_SPOOL_FSYNC", _boolean),
)
