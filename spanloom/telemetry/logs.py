"""Logs: every line is JSON on stdout and the same record over OTLP, with the ids of its span.

    structlog logger ──▶ merge contextvars ─▶ level ─┐
    stdlib logger ─▶ root handler, ProcessorFormatter ┴▶ LogPipeline ─▶ OTLP record, stdout line

There is one handler, on the root logger; those that uvicorn and others put on stdout and stderr
are taken off, or each line would appear twice.
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry._logs import Logger, LoggerProvider, LogRecord, SeverityNumber
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span

from spanloom import semconv
from spanloom.telemetry import endings
from spanloom.telemetry.clean_records import as_sdk_record
from spanloom.telemetry.log_lines import NamedLogger, StdoutWriter, plain, render
from spanloom.telemetry.redaction import MESSAGE_LIMIT, redact

EventDict = MutableMapping[str, Any]

_SEVERITY: Final = {
    "debug": (SeverityNumber.DEBUG, "DEBUG"),
    "info": (SeverityNumber.INFO, "INFO"),
    "warning": (SeverityNumber.WARN, "WARN"),
    "error": (SeverityNumber.ERROR, "ERROR"),
    "critical": (SeverityNumber.FATAL, "FATAL"),
}
_TIME_NS: Final = "_time_ns"
_OUR_KEYS: Final = frozenset(
    {
        *("timestamp", "level", "event", "logger", semconv.SERVICE_NAME),
        *(semconv.LOG_TRACE_ID, semconv.LOG_SPAN_ID, semconv.LOG_TRACE_FLAGS),
    }
)
# Their INFO says what spans say better, or that something was dropped after shutdown.
_CHATTY: Final = ("httpx", "httpx2", "httpcore", "httpcore2", "opentelemetry")
_ACCESS_LOGGER: Final = "uvicorn.access"
_FIRST_ERROR_STATUS: Final = 400
_STEP_TOKENS: Final = (
    (semconv.GEN_AI_USAGE_INPUT_TOKENS, "input_tokens"),
    (semconv.GEN_AI_USAGE_OUTPUT_TOKENS, "output_tokens"),
)


@functools.lru_cache(maxsize=4)
def _date_and_time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class LogPipeline:
    """Last processor of both ways: adds ids and service, emits over OTLP, renders the line."""

    def __init__(self, service_name: str, provider: LoggerProvider | None = None) -> None:
        self._service_name = service_name
        self._provider = provider
        self._loggers: dict[str, Logger] = {}

    def export_to(self, provider: LoggerProvider | None) -> LoggerProvider | None:
        """Emit on this provider from now on (None: stdout only); returns the one before."""
        before, self._provider, self._loggers = self._provider, provider, {}
        return before

    def __call__(self, logger: Any, method_name: str, event_dict: EventDict) -> str:  # noqa: ARG002
        """Finish an event of the current context; structlog's processor signature."""
        if isinstance(logger, NamedLogger):
            event_dict.setdefault("logger", logger.name)
        return self.finish(event_dict, trace.get_current_span())

    def finish(self, event_dict: EventDict, span: Span) -> str:
        """Finish an event that belongs to `span`."""
        now = event_dict.pop(_TIME_NS, None) or time.time_ns()
        exc = describe_exception(event_dict)
        context = span.get_span_context()
        if exc is not None and not span.is_recording():
            # Outside of any span, or in what an earlier request has left: a server logs what its
            # application raised in the context of the connection.
            context = endings.raised_in(exc) or context
            span = trace.NonRecordingSpan(context)
        level = str(event_dict.get("level", "info"))
        line: dict[str, Any] = {
            "timestamp": f"{_date_and_time(now // 10**9)}.{now % 10**9 // 1000:06}Z",
            "level": level,
            "event": event_dict.get("event", ""),
            "logger": event_dict.get("logger", ""),
            semconv.SERVICE_NAME: self._service_name,
        }
        if context.is_valid:
            line[semconv.LOG_TRACE_ID] = trace.format_trace_id(context.trace_id)
            line[semconv.LOG_SPAN_ID] = trace.format_span_id(context.span_id)
            line[semconv.LOG_TRACE_FLAGS] = format(context.trace_flags, "02x")
        for key, value in event_dict.items():
            line.setdefault(key, value)
        provider = self._provider
        # Export threads run with instrumentation suppressed: what they log would be exported,
        # fail, be logged again, and so on.
        if provider is not None and is_instrumentation_enabled():
            # Somebody else's log processor may raise; the line on stdout has to come all the same.
            with contextlib.suppress(Exception):
                self._emit(provider, line, level, now, span)
        return render(line)

    def _emit(
        self, provider: LoggerProvider, line: dict[str, Any], level: str, now: int, span: Span
    ) -> None:
        name = str(line["logger"]) or "spanloom"
        if name.startswith("opentelemetry."):
            return
        logger = self._loggers.get(name)
        if logger is None:
            logger = self._loggers[name] = provider.get_logger(name)
        number, text = _SEVERITY.get(level, _SEVERITY["info"])
        record = LogRecord(
            timestamp=now,
            observed_timestamp=now,
            context=trace.set_span_in_context(span),
            severity_number=number,
            severity_text=text,
            body=plain(line["event"]),
            attributes={key: plain(value) for key, value in line.items() if key not in _OUR_KEYS},
        )
        # The SDK's logger takes both, and annotates one.
        logger.emit(as_sdk_record(record, logger) or record)  # type: ignore[arg-type]


def describe_exception(event_dict: EventDict) -> BaseException | None:
    """Replace `exc_info` by exception.type, .message and .stacktrace, redacted and capped."""
    exc_info = event_dict.pop("exc_info", None)
    if not exc_info:
        return None
    if isinstance(exc_info, BaseException):
        exc: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        exc = exc_info[1]
    else:
        exc = sys.exc_info()[1]
    if exc is None:
        return None
    event_dict[semconv.EXCEPTION_TYPE] = endings.error_type_of(exc)
    event_dict[semconv.EXCEPTION_MESSAGE] = endings.message_of(exc)
    event_dict[semconv.EXCEPTION_STACKTRACE] = endings.format_stack(exc)
    return exc


def _from_record(logger: Any, name: str, event_dict: EventDict) -> EventDict:  # noqa: ARG001
    """First processor of stdlib records: what the record says about itself."""
    record: logging.LogRecord = event_dict["_record"]
    event_dict["level"] = record.levelname.lower()
    event_dict["logger"] = record.name
    event_dict[_TIME_NS] = int(record.created * 1e9)
    # Second copies of the message: uvicorn's, and what formatters of other handlers leave behind.
    for key in ("color_message", "message", "asctime"):
        event_dict.pop(key, None)
    event_dict["event"] = event_dict["event"].strip()
    if record.name == _ACCESS_LOGGER:  # and not of the shape uvicorn gives it
        event_dict["event"] = redact(event_dict["event"], MESSAGE_LIMIT)
    return event_dict


def _access_event(record: logging.LogRecord) -> logging.LogRecord:
    """Turn uvicorn's access line into one event with fields, so that lines group by event."""
    if record.name == _ACCESS_LOGGER:
        match record.args:
            case (client, method, str(path), version, status):
                fields = {
                    "method": method,
                    "path": redact(path, MESSAGE_LIMIT),  # and the query string, which may hold all
                    "status": status,
                    "client": client,
                    "http_version": version,
                }
                return logging.makeLogRecord(
                    {**vars(record), **fields, "msg": "http_request", "args": ()}
                )
    return record


class OncePerMinute(logging.Filter):
    """Lets one record a minute of OpenTelemetry's own loggers through, with a count of the rest.

    A backend that is down makes three exporters complain every second or so, and a full queue
    complains for every span.
    """

    def __init__(self, period_s: float = 60.0) -> None:
        super().__init__()
        self._period_s = period_s
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one record."""
        if not record.name.startswith("opentelemetry."):
            return True
        # The exporters, the queues before them and the metric reader share one line a minute.
        exporting = record.name.startswith(("opentelemetry.exporter.", "opentelemetry.sdk."))
        topic = "export" if exporting else record.name
        now = time.monotonic()
        if now - self._last.get(topic, -self._period_s) < self._period_s:
            self._held_back[topic] = self._held_back.get(topic, 0) + 1
            return False
        self._last[topic] = now
        held_back = self._held_back.pop(topic, 0)
        if held_back:
            record.held_back = held_back
        if exporting:
            record.hint = "telemetry does not reach its backend; the service is not affected"
        return True


class QuietPaths(logging.Filter):
    """Drops uvicorn's access lines of successful requests to paths that are polled all day."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__()
        self._paths = paths

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about one record, by uvicorn's (client, method, path, version, status)."""
        if record.name != _ACCESS_LOGGER or not isinstance(record.args, tuple):
            return True
        match record.args:
            case (_, _, str(path), _, int(status)):
                return status >= _FIRST_ERROR_STATUS or path.partition("?")[0] not in self._paths
        return True


class LineHandler(logging.Handler):
    """The root handler: formats a record with the pipeline and writes the line."""

    def __init__(
        self, writer: StdoutWriter, pipeline: LogPipeline, quiet_paths: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self._writer = writer
        self.addFilter(OncePerMinute())
        if quiet_paths:
            self.addFilter(QuietPaths(quiet_paths))
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[
                    structlog.contextvars.merge_contextvars,
                    structlog.stdlib.ExtraAdder(),
                    _from_record,
                ],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, pipeline],
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a record that cannot be formatted is written as it is."""
        try:
            line = self.format(_access_event(record))
        except Exception:  # noqa: BLE001 - logging never breaks the application
            event = redact(f"{record.msg!r} {record.args!r}", MESSAGE_LIMIT)
            line = render(
                {"level": record.levelname.lower(), "event": event, "logger": record.name}
            )
        self._writer.write(line)


_writer: Final = StdoutWriter()
_pipeline: LogPipeline | None = None
_info_enabled = False


def configure(
    *,
    service_name: str,
    level: str = "INFO",
    provider: LoggerProvider | None = None,
    quiet_paths: tuple[str, ...] = (),
) -> None:
    """Send structlog and stdlib logging through the pipeline, from `level` upwards."""
    global _pipeline, _info_enabled  # noqa: PLW0603 - one process, one stdout
    _pipeline = LogPipeline(service_name, provider)
    threshold = logging.getLevelNamesMapping()[level]
    _info_enabled = threshold <= logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _pipeline,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *names: NamedLogger(names[0] if names else "", _writer),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, LineHandler)]:
        root.removeHandler(handler)
    root.addHandler(
        LineHandler(_writer, _pipeline, quiet_paths if threshold > logging.DEBUG else ())
    )
    root.setLevel(threshold)
    for name in _CHATTY:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(max(threshold, logging.WARNING))
    adopt_stdlib_loggers()


def stop_exporting() -> None:
    """Send nothing over OTLP any more; called when the logger provider is shut down."""
    if _pipeline is not None:
        _pipeline.export_to(None)


def current_pipeline() -> LogPipeline | None:
    """What `configure` made; None before."""
    return _pipeline


def adopt_stdlib_loggers() -> None:
    """Take handlers on stdout and stderr off all loggers, and let their records reach the root.

    Called again when the server starts, because uvicorn installs its handlers late.
    """
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for logger in loggers:
        if not isinstance(logger, logging.Logger):
            continue
        ours = [handler for handler in logger.handlers if _writes_to_terminal(handler)]
        for handler in ours:
            logger.removeHandler(handler)
        if ours or logger.name.startswith("uvicorn"):
            logger.propagate = True


def _writes_to_terminal(handler: logging.Handler) -> bool:
    if not isinstance(handler, logging.StreamHandler):
        return False
    terminal = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return any(handler.stream is stream for stream in terminal)


def get_logger(name: str) -> Any:
    """Return a structlog logger: `get_logger(__name__).info("chat_request", query_len=12)`."""
    return structlog.get_logger(name)


def log_step(span: Any, ending: endings.Ending) -> None:
    """Write the line of one ended span: name, operation, duration, outcome, tokens."""
    if _pipeline is None or not _info_enabled or span.end_time is None:
        return
    found = span.attributes
    attributes = found.copy() if found else {}  # a dict: the proxy calls Python for each look-up
    event: dict[str, Any] = {
        "event": "step",
        "level": "info",
        "logger": "spanloom.steps",
        "name": span.name,
        "operation": attributes.get(semconv.GEN_AI_OPERATION_NAME, "step"),
        "duration_ms": round((span.end_time - span.start_time) / 1e6, 3),
        "outcome": ending.outcome,
    }
    if ending.error_type is not None:
        event[semconv.ERROR_TYPE] = ending.error_type
    for attribute, key in _STEP_TOKENS:
        if attribute in attributes:
            event[key] = attributes[attribute]
    _writer.write(_pipeline.finish(event, span))
