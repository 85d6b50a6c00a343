"""Exporters: which ones the settings ask for."""

import logging

# `requests` imports it with its first request, which a thread of ours sends: a process that is
# forked in that moment has the module by halves, and each of its exporters would wait for ever.
import netrc  # noqa: F401
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final

from spanloom.telemetry.settings import Signal, TelemetrySettings

_logger: Final = logging.getLogger(__name__)


def create_exporters(
    signal: Signal, settings: TelemetrySettings, report: Callable[[str], None]
) -> list[Any]:
    """Make the exporters of one signal; one that cannot be made is reported and left out."""
    made: list[Any] = []
    if not settings.enabled:
        return made
    for name in settings.exporters[signal]:
        if name == "none":
            continue
        try:
            made.append(_create(signal, name, settings))
        except Exception as exc:  # noqa: BLE001 - a wrong setting must not stop the application
            report(f"no {signal} are exported by {name}: {exc}")
    return made


def create_otlp_exporter(signal: Signal, settings: TelemetrySettings, **arguments: Any) -> Any:
    """Make one more exporter to the OTLP endpoint of a signal; None where there is none."""
    for name in settings.exporters[signal] if settings.enabled else ():
        if is_otlp(name):
            try:
                return _create(signal, name, settings, **arguments)
            except Exception:
                _logger.debug("no exporter for %s", signal, exc_info=True)
    return None


def is_otlp(name: str) -> bool:
    """Whether an exporter's name means OTLP in one of its protocols."""
    return name in {"otlp", "otlp_proto_http", "otlp_proto_grpc"}


def _create(signal: Signal, name: str, settings: TelemetrySettings, **arguments: Any) -> Any:
    if name == "otlp":
        name = "otlp_proto_grpc" if settings.protocols[signal] == "grpc" else "otlp_proto_http"
    if name.startswith("otlp_proto_") and not _endpoint_is_set(signal):
        arguments |= (
            {"endpoint": settings.grpc_endpoint, "insecure": True}
            if name == "otlp_proto_grpc"
            else {"endpoint": f"{settings.endpoint.rstrip('/')}/v1/{signal}"}
        )
    if name == "otlp_proto_http" and not _makes_its_session(signal):
        from spanloom.telemetry.otlp_session import OtlpSession  # noqa: PLC0415 - with the exporter

        arguments["session"] = OtlpSession()
    return _load(signal, name)(**arguments)


def _endpoint_is_set(signal: Signal) -> bool:
    return any(
        os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", f"{signal.upper()}_")
    )


def _makes_its_session(signal: Signal) -> bool:
    """Whether the exporter gets one from an installed provider of credentials."""
    return any(
        os.environ.get(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{kind}CREDENTIAL_PROVIDER")
        for kind in ("", f"{signal.upper()}_")
    )


def _load(signal: Signal, name: str) -> Any:
    for entry_point in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        return entry_point.load()
    package = name.replace("_", "-")
    raise LookupError(f"not installed, try: pip install opentelemetry-exporter-{package}")
