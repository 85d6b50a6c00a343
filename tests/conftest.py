"""What `spanloom.telemetry.setup` installs in the test process is there for its own tests only."""

import contextlib
import os

import pytest
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor, HTTPXClientInstrumentor

from spanloom.telemetry import endings, sdk
from spanloom.telemetry.langgraph import LangGraphInstrumentor

# As hypothesis does by itself where CI is set: how long one example takes, and how fast data is
# drawn, says how busy the machine is. The environments of other LangGraphs do without it.
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "busy", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("busy")


# Unbuffered, `print` writes a line and its end apart, and another thread's log line gets between: a
# test that waits for the line waits for ever. Processes that tests start inherit this.
os.environ.pop("PYTHONUNBUFFERED", None)


class ProcessTelemetry:
    """Takes the process's instrumentation off and puts it back.

    The API's tests set telemetry up once for the process, as the service does. Whoever runs between
    or after them in this process must neither see it (an instrumented client overwrites the
    `traceparent` that a test sends by hand) nor take it away.
    """

    def __init__(self) -> None:
        self._listener = endings._on_step
        self._aside = False

    def use(self, *, wanted: bool) -> None:
        handle = sdk._handle
        if handle is None or wanted is not self._aside:
            return
        self._aside = not wanted
        if wanted:
            endings.set_step_listener(self._listener)
            sdk._instrument_libraries(handle)
            return
        self._listener = endings._on_step
        endings.set_step_listener(None)
        for instrumentor in (
            LangGraphInstrumentor(),
            HTTPXClientInstrumentor(),
            HTTPX2ClientInstrumentor(),
        ):
            if instrumentor.is_instrumented_by_opentelemetry:
                instrumentor.uninstrument()


@pytest.fixture(scope="session")
def _process_telemetry() -> ProcessTelemetry:
    return ProcessTelemetry()


@pytest.fixture(autouse=True)
def only_where_asked_for(
    request: pytest.FixtureRequest, _process_telemetry: ProcessTelemetry
) -> None:
    """Instrument the process for tests that use `telemetry` of tests/service, for no other."""
    _process_telemetry.use(wanted="_exported_to" in request.fixturenames)
