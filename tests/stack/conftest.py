"""One running stack for the tests that leave it alive; every test here is marked `stack`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.programs import Stack, whole_stack
from tests.stack.service import Service, agent_service

# Four programs and three processes start within a test's time when it is the first.
TIMEOUT_S = 420
# What takes minutes begins first: in parallel none of them is left over at the end.
LONGEST_FIRST = (
    *("test_collector_faults.py", "test_reap.py", "test_alerts.py", "test_compose_run.py"),
    *("test_dashboards.py", "test_collector_tiers.py", "test_cloud_run.py"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what needs the real programs out of `make test`, also where a file forgot to say so.

    And sort it: the longest files first.
    """
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.stack)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(
        key=lambda item: (
            place.get(item.path.name, len(place)) if here in item.path.parents else len(place)
        )
    )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All programs, for tests that stop none of them."""
    with whole_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="session")
def service(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The agent service, sending to the stack's Collector; Prometheus scrapes its /metrics."""
    with agent_service(tmp_path_factory.mktemp("service"), stack.collector.http) as running:
        address = running.api.removeprefix("http://")
        stack.prometheus.scrape("agent-api", address, file="agent-api.yml")
        yield running
