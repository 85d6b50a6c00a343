"""OTLP over gRPC: Export of TraceService, LogsService and MetricsService.

Statuses follow opentelemetry-proto: INVALID_ARGUMENT is dropped by clients, UNAVAILABLE with
RetryInfo is sent again after the given time.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from spanloom.errors import ConfigurationError, PayloadError, StoreError, StoreRejectedError
from spanloom.otlp import PROTOBUF
from spanloom.server.monitoring import Monitor
from spanloom.server.responses import message_of
from spanloom.server.signals import SIGNALS, Intake, Signal

_RETRY_AFTER_UNKNOWN_S: Final = 5.0

Handler = Callable[[bytes, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[bytes]]


def server(
    intake: Intake,
    monitor: Monitor,
    max_body_bytes: int,
    signals: Sequence[Signal] = SIGNALS,
) -> "grpc.aio.Server":
    """The gRPC server, without a port yet."""
    made = grpc.aio.server(
        options=[
            # Without it a second server binds the same port and gets half of the requests.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", max_body_bytes),
        ]
    )
    made.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(
                signal.grpc_service,
                # No deserialiser: bytes come in, so that nonsense is answered by us with
                # INVALID_ARGUMENT and not by gRPC with INTERNAL, and big ones decode in a thread.
                {"Export": grpc.unary_unary_rpc_method_handler(_handler(signal, intake, monitor))},
            )
            for signal in signals
        )
    )
    return made


def bind(made: "grpc.aio.Server", host: str, port: int) -> int:
    """Listen on a free port; returns its number. Raises ConfigurationError if it is taken."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = int(made.add_insecure_port(address))
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {address}: {error}") from error
    if not bound:
        raise ConfigurationError(f"cannot listen on {address}")
    return bound


def _handler(signal: Signal, intake: Intake, monitor: Monitor) -> Handler:
    async def export(request: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes:
        try:
            intake.held.add(len(request))
            try:
                answer: Message = await intake.take(signal, request, PROTOBUF)
            finally:
                intake.held.remove(len(request))
        except Exception as error:  # noqa: BLE001  # the edge: every error has its status
            code, details = status_of(error)
            monitor.refused(signal.name, code.name)
            await context.abort(code, message_of(error), details)
        return answer.SerializeToString()

    return export


def status_of(error: Exception) -> tuple[grpc.StatusCode, tuple[tuple[str, bytes], ...]]:
    """Status code and trailing metadata that tell of `error`."""
    match error:
        case PayloadError() | StoreRejectedError():
            return grpc.StatusCode.INVALID_ARGUMENT, ()
        case StoreError():
            wait = getattr(error, "retry_after_s", _RETRY_AFTER_UNKNOWN_S)
            return grpc.StatusCode.UNAVAILABLE, _retry_info(message_of(error), wait)
    return grpc.StatusCode.INTERNAL, ()


def _retry_info(message: str, seconds: float) -> tuple[tuple[str, bytes], ...]:
    whole = int(seconds)
    delay = Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=message)
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return (("grpc-status-details-bin", status.SerializeToString()),)
