"""pytest plugin: the fixture `spanloom_spans`, and the trace of an agent test that failed.

Loaded in every pytest run where Spanloom is installed, so it imports nothing until it is used.
"""

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from spanloom.telemetry.testing import Captured

_CAPTURED: "pytest.StashKey[Captured]" = pytest.StashKey()


@pytest.fixture
def spanloom_spans(request: pytest.FixtureRequest) -> Iterator["Captured"]:
    """Spans and logs of the test, as `spanloom.telemetry.testing.capture` keeps them."""
    from spanloom.telemetry.testing import capture  # noqa: PLC0415 - the SDK comes with it

    with capture() as captured:
        request.node.stash[_CAPTURED] = captured
        yield captured
    del request.node.stash[_CAPTURED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the test recorded to the report of its failure."""
    report = yield
    captured: Any = item.stash.get(_CAPTURED, None)
    if report.failed and captured is not None:
        with contextlib.suppress(Exception):  # a report without a picture is better than none
            report.sections.append(("Spanloom trace", captured.picture()))
    return report
