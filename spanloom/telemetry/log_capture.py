"""Sends log records to a provider of a test's choice for a while."""

import contextlib
import logging
from collections.abc import Iterator

import structlog
from opentelemetry._logs import LoggerProvider

from spanloom.telemetry import logs
from spanloom.telemetry.log_lines import NamedLogger, StdoutWriter


class _NoLines(StdoutWriter):
    """pytest shows what was logged; nobody reads the lines."""

    def write(self, line: str) -> None:
        """Write nothing."""


@contextlib.contextmanager
def logs_sent_to(provider: LoggerProvider) -> Iterator[None]:
    """Emit records of structlog and stdlib loggers on this provider inside the block.

    From INFO upwards, as `setup` does, or from where it was told to. After `setup` the lines on
    stdout stay, and only their copies go here instead of to the backend.
    """
    pipeline = logs.current_pipeline()
    if pipeline is None:
        with _configured_for(provider):
            yield
        return
    before = pipeline.export_to(provider)
    try:
        yield
    finally:
        pipeline.export_to(before)


@contextlib.contextmanager
def _configured_for(provider: LoggerProvider) -> Iterator[None]:
    """What `setup` would configure, without output and without staying."""
    pipeline = logs.LogPipeline("", provider)
    writer = _NoLines()
    was_configured, before = structlog.is_configured(), structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            pipeline,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *names: NamedLogger(names[0] if names else "", writer),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    level, handler = root.level, logs.LineHandler(writer, pipeline)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        if was_configured:
            structlog.configure(**before)
        else:
            structlog.reset_defaults()
