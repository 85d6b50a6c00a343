"""Four worker processes behind one port: traces, logs, sessions and sums stay right."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from spanloom import semconv
from tests.e2e.stack import BARRELS, SHOWN_S, START_S, Stack, running_stack, traceparent

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-workers"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("workers")
    with running_stack(folder, AGENT_WORKERS="4", AGENT_DEADLINE_S="110") as running:
        # One worker is enough to be ready; these tests are about all of them.
        end = time.monotonic() + START_S
        while running.log("api").count("Application startup complete") < 4:
            assert time.monotonic() < end, running.log("api")
            time.sleep(0.1)
        yield running


def test_twenty_callers_at_once_never_mix(workers: Stack) -> None:
    """Each of 20 concurrent requests gets its own answer, its own trace and its own log lines."""

    def ask(name: str) -> tuple[str, str, str, dict[str, object]]:
        header, trace_id, caller = traceparent()
        question = f"How many barrels of lamp oil does the {name} depot store?"
        answer = workers.ask(question, header, session_id=f"s-{name}", user_id=f"u-{name}")
        assert answer.status_code == 200, answer.text
        return name, trace_id, caller, answer.json()

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(ask, BARRELS))

    pids = set()
    for name, trace_id, caller, body in results:
        assert str(BARRELS[name]) in str(body["answer"]), (name, body)
        assert trace_id == body["trace_id"]
        trace = workers.trace(trace_id)
        (root,) = trace.roots()
        assert caller == root.span.parent_span_id
        assert f"s-{name}" == root.span.attributes[semconv.SESSION_ID]
        names = [span.name for span in trace.spans]
        assert names.count("invoke_node retrieve") == 3
        assert names.count("invoke_workflow agent") == 1
        assert body["tokens_used"] == trace.usage.total_tokens
        sessions = {
            record.attributes["session_id"]
            for record in workers.logs(trace_id, "chat_request", "chat_response")
            if "session_id" in record.attributes
        }
        assert {f"s-{name}"} == sessions
        pids.add(root.span.resource.attributes[semconv.SERVICE_INSTANCE_ID])
    assert len(pids) > 1, "only one of the workers answered"


def test_metrics_sum_over_the_workers(workers: Stack) -> None:
    """Whoever of the four answers GET /metrics counts the requests of all."""
    before = counted(workers)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: workers.ask("What is a span?"), range(8)))
    # A worker counts a request after its answer has left.
    end = time.monotonic() + SHOWN_S
    while counted(workers) < before + 8:
        assert time.monotonic() < end, counted(workers)
        time.sleep(0.1)

    assert {counted(workers) for _ in range(8)} == {before + 8}, "the workers disagree"


def counted(stack: Stack) -> float:
    text = stack.client.get(f"{stack.api}/metrics").text
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("agent_requests_total{") and 'endpoint="/chat"' in line
    )


def test_a_session_is_right_whichever_worker_answers(workers: Stack) -> None:
    """The turns of one session meet in its file, whoever took them."""
    for name in ("Quarrick", "Belloway", "Orrindale"):
        session = {"session_id": f"walk-{name}", "user_id": "grace"}
        question = f"How many barrels of lamp oil does the {name} depot store?"
        first = ask_anew(workers, question, **session)
        second = ask_anew(workers, "When is it open?", **session)

        assert str(BARRELS[name]) in first
        assert "market days" in second


def ask_anew(stack: Stack, query: str, **session: str) -> str:
    """Ask over a new connection, so that any worker may take it."""
    answer = httpx2.post(f"{stack.api}/chat", json={"query": query, **session}, timeout=120)
    return str(answer.json()["answer"])
