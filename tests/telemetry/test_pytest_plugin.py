"""The pytest plugin, in pytest runs of its own."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

GRAPH = """
    import logging
    from typing import TypedDict

    import pytest
    from langgraph.graph import START, StateGraph
    from spanloom.telemetry import tool

    class State(TypedDict, total=False):
        text: str

    def look(state):
        with tool("lookup"):
            logging.getLogger("my.app").warning("from %s", "图书馆")
            raise KeyError("no such 书")

    graph = StateGraph(State).add_node("look", look).add_edge(START, "look").compile(name="g")
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """In processes of their own: the instrumentation is one a process."""
    monkeypatch.setenv("PYTHONUTF8", "1")
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    return pytester


def test_it_is_found_by_pytest() -> None:
    """Installing Spanloom is all it takes."""
    (found,) = entry_points(group="pytest11", name="spanloom")
    assert found.value == "spanloom.telemetry.pytest_plugin"


def test_a_failed_test_shows_its_trace(run: pytest.Pytester) -> None:
    """Names, outcome, exception and log lines, once, below the failure."""
    run.makepyfile(
        GRAPH
        + """
    def test_it(spanloom_spans):
        graph.invoke({})
    """
    )
    result = run.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- Spanloom trace -*",
            "trace 10000000000000000000000000000001",
            "invoke_workflow g * ms [[]error: KeyError]",
            "  invoke_node look * ms [[]error: KeyError]",
            "    execute_tool lookup * ms [[]error: KeyError]",
            "      ! KeyError: 'no such 书'",
            "      - warn from 图书馆",
        ]
    )
    assert str(result.stdout).count("Spanloom trace") == 1


def test_a_fixture_that_fails_later_shows_the_trace_too(run: pytest.Pytester) -> None:
    """What the setup of a test recorded helps as much."""
    run.makepyfile(
        GRAPH
        + """
    @pytest.fixture
    def answer(spanloom_spans):
        return graph.invoke({})

    def test_it(answer):
        pass
    """
    )
    result = run.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*- Spanloom trace -*", "*execute_tool lookup*"])


def test_it_says_nothing_of_tests_that_pass_or_do_not_ask(run: pytest.Pytester) -> None:
    """No section, no header, no line; each test begins with an empty trace."""
    run.makepyfile(
        GRAPH
        + """
    @pytest.mark.parametrize("time", [1, 2])
    def test_passes(spanloom_spans, time):
        with pytest.raises(KeyError):
            graph.invoke({})
        assert len(spanloom_spans.spans) == 3
        assert spanloom_spans.spans[0].context.trace_id == 0x10000000000000000000000000000001

    def test_fails_without_it():
        assert False
    """
    )
    result = run.runpytest_subprocess("-p", "no:asyncio", "-p", "no:xdist")
    result.assert_outcomes(passed=2, failed=1)
    assert "Spanloom trace" not in str(result.stdout)


def test_it_imports_nothing_until_it_is_used(run: pytest.Pytester) -> None:
    """A pytest run that does not ask for the fixture loads no SDK, and no LangGraph."""
    run.makepyfile(
        """
        import sys

        def test_it():
            assert "spanloom.telemetry.pytest_plugin" in sys.modules
            heavy = ("opentelemetry", "langgraph", "structlog", "prometheus_client")
            assert [name for name in sys.modules if name.startswith(heavy)] == []
        """
    )
    without_other_plugins = ("-p", "no:langsmith_plugin", "-p", "no:anyio", "-p", "no:asyncio")
    run.runpytest_subprocess(*without_other_plugins).assert_outcomes(passed=1)


def test_a_picture_that_cannot_be_drawn_costs_no_report(run: pytest.Pytester) -> None:
    """The failure is reported as ever."""
    run.makepyfile(
        """
        def test_it(spanloom_spans):
            spanloom_spans.picture = None
            assert 1 == 2
        """
    )
    result = run.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])


def test_every_public_name_is_there() -> None:
    """The package imports its parts late; each name of its face leads to one."""
    code = (
        "import sys, spanloom.telemetry as face\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
        "assert all(getattr(face, name) is not None for name in face.__all__)\n"
        "assert set(face.__all__) <= set(dir(face))\n"
        "assert not hasattr(face, 'nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
