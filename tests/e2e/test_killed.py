"""The agent service killed, and told to stop, in the middle of a model call.

What had ended is known from somewhere else than the trace: the service writes one log line for each
step that ends, with the id of its span. The offline model streams slowly and is then frozen, so
that the call is under way for as long as the test looks at it.
"""

import contextlib
import itertools
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spanloom import semconv
from spanloom.model import OpenSpan, OpenState, Span, Trace
from spanloom.sources.http import HttpReader
from tests.server.running import Client, running
from tests.stack.programs import Program
from tests.stack.service import Service, agent_service

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-workers"), pytest.mark.timeout(600)]

WAIT_S = 60
DEAD = "http://127.0.0.1:9"
QUESTION = "What does a KV cache save, and what does it cost?"
# Of the spans open during a model call, in the order in which they were begun.
CUT = ["POST /chat", "invoke_workflow agent", "invoke_node generate", "chat"]


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Client]:
    with running(tmp_path / "backend", reap_after_s=3.0) as client:
        yield client


@pytest.fixture
def reader(backend: Client) -> Iterator[HttpReader]:
    with closing(HttpReader(backend.addresses.query)) as reader:
        yield reader


def eventually(look: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + WAIT_S
    while not (seen := look()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return seen


@contextlib.contextmanager
def slow_service(folder: Path, endpoint: str, **env: str) -> Iterator[Service]:
    """The processes, with a model that needs seconds for an answer."""
    settings = {
        "AGENT_OFFLINE_LLM_TOKENS_PER_S": "12",
        "AGENT_LLM_TIMEOUT_S": "300",
        "AGENT_DEADLINE_S": "300",
        "AGENT_CHAT_TIMEOUT_S": "400",
        "AGENT_SHUTDOWN_GRACE_S": "1",
        **env,
    }
    with agent_service(folder, endpoint, given=None, **settings) as service:
        try:
            yield service
        finally:
            for program in service.processes.values():
                if program.running:
                    program.resume()


def restart(service: Service, **env: str) -> Program:
    """Stop the API and start it with these variables on top, its model answering."""
    service.processes["offline-llm"].resume()
    api = service.processes["api"]
    api.stop()
    api.env = {**api.env, **env}
    api.start()
    return api


@dataclass
class Question:
    """A request under way."""

    trace_id: str
    thread: threading.Thread

    def is_cut(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def ask(service: Service) -> Question:
    trace_id = secrets.token_hex(16)

    def post() -> None:
        with contextlib.suppress(httpx2.HTTPError):  # it is what the tests do
            service.ask(QUESTION, trace_id)

    question = Question(trace_id, threading.Thread(target=post))
    question.thread.start()
    return question


def steps(program: Program, trace_id: str) -> dict[str, str]:
    """Name by span id of what the process said has ended."""
    found = {}
    for line in program.log.splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if said.get("trace_id") == trace_id and said["event"] == "step":
                found[said["span_id"]] = said["name"]
    return found


def is_generating(spans: Iterable[OpenSpan]) -> bool:
    return any(
        one.span.name.startswith("chat ")
        and semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK in one.span.attributes
        for one in spans
    )


@dataclass(frozen=True)
class Seen:
    """What was there while the model streamed its answer."""

    trace: Trace
    ended: dict[str, str]
    """Name by span id of what the API had said has ended."""
    cut: set[str]
    """Ids of the API's spans that were still running."""


def in_a_model_call(service: Service, reader: HttpReader, question: Question) -> Seen:
    """The trace while an answer is being streamed, with the model frozen in it."""

    def look() -> Trace | None:
        trace = reader.get_trace(question.trace_id)
        return trace if trace is not None and is_generating(trace.open_spans) else None

    eventually(look, "no model call was seen while it streamed")
    service.processes["offline-llm"].freeze()
    ended = steps(service.processes["api"], question.trace_id)

    def settled() -> Seen | None:
        trace = look()
        if trace is None:
            return None
        running = (one.span for one in trace.open_spans if one.state is OpenState.RUNNING)
        # what ended but was not sent yet counts as running until two heartbeats do not list it
        cut = set(of_the_api(running)) - set(ended)
        return Seen(trace, ended, cut) if len(cut) == len(CUT) else None

    seen: Seen = eventually(settled, "not all of the open spans were announced")
    return seen


def of_the_api(spans: Iterable[Span]) -> dict[str, Span]:
    """The spans of the API's process by id."""
    return {
        one.span_id: one
        for one in spans
        if one.resource.attributes[semconv.SERVICE_NAME] == "agent-api"
    }


def true_ends(trace: Trace) -> set[str]:
    """Ids of the spans that the API's process ended itself."""
    ended = of_the_api(trace.spans).items()
    return {key for key, one in ended if semconv.SPANLOOM_INCOMPLETE not in one.attributes}


def check_the_cut_spans(trace: Trace, seen: Seen) -> None:
    """Each span that was open is there once, says that it was cut off, and by what."""
    ended = of_the_api(trace.spans)
    assert len(ended) == len([one for one in trace.spans if one.span_id in ended])
    cut = {key: one for key, one in ended.items() if semconv.SPANLOOM_INCOMPLETE in one.attributes}
    assert set(cut) == seen.cut
    in_order = sorted(cut.values(), key=lambda one: one.start_time_unix_nano)
    assert [one.name.split(" offline")[0] for one in in_order] == CUT
    for before, after in itertools.pairwise(in_order):
        assert after.parent_span_id == before.span_id
    for one in in_order:
        assert one.is_error
        assert one.attributes[semconv.SPANLOOM_INCOMPLETE] is True
        assert one.attributes[semconv.ERROR_TYPE] == semconv.ERROR_TYPE_PROCESS_DIED
    chat = in_order[3]
    assert chat.attributes[semconv.GEN_AI_REQUEST_MODEL] == chat.name.removeprefix("chat ")
    assert chat.attributes[semconv.GEN_AI_OPERATION_NAME] == "chat"
    assert chat.attributes[semconv.SERVER_ADDRESS] == "127.0.0.1"


def test_kill_9_in_a_model_call_with_the_spool(
    tmp_path: Path, backend: Client, reader: HttpReader
) -> None:
    """Nothing had been sent yet; after the restart the trace is complete up to the kill."""
    spool = tmp_path / "spool"
    with slow_service(tmp_path, backend.addresses.otlp_http) as service:
        # a batch delay so long that nothing which ended leaves before the kill
        api = restart(service, SPANLOOM_SPOOL_DIR=str(spool), OTEL_BSP_SCHEDULE_DELAY="600000")
        question = ask(service)
        seen = in_a_model_call(service, reader, question)
        assert {"invoke_node route", "invoke_node rerank"} <= set(seen.ended.values())
        assert true_ends(seen.trace) == set(), "nothing that ended had been sent"
        killed_at = time.time_ns()
        api.kill()
        question.is_cut()

        restart(service, OTEL_BSP_SCHEDULE_DELAY="500")

        def whole() -> Trace | None:
            trace = reader.get_trace(question.trace_id)
            if trace is None or trace.open_spans:
                return None
            return trace if set(seen.ended) <= true_ends(trace) else None

        trace = eventually(whole, "what was in the spool has not arrived")
        ended = of_the_api(trace.spans)
        for span_id, name in seen.ended.items():
            assert ended[span_id].name == name
        check_the_cut_spans(trace, seen)
        assert max(one.end_time_unix_nano for one in ended.values()) <= killed_at + 1_000_000_000


def test_kill_9_in_a_model_call_without_the_spool(
    tmp_path: Path, backend: Client, reader: HttpReader
) -> None:
    """What ended longer ago than the batch delay is there; the trace says that it is incomplete."""
    with slow_service(tmp_path, backend.addresses.otlp_http) as service:
        api = service.processes["api"]
        question = ask(service)
        seen = in_a_model_call(service, reader, question)

        def delivered() -> bool:
            trace = reader.get_trace(question.trace_id)
            return trace is not None and set(seen.ended) <= true_ends(trace)

        eventually(delivered, "what had ended was not sent by itself")
        api.kill()
        question.is_cut()

        def reaped() -> Trace | None:
            trace = reader.get_trace(question.trace_id)
            return trace if trace is not None and not trace.open_spans else None

        trace = eventually(reaped, "the open spans were not ended by the backend")
        check_the_cut_spans(trace, seen)
        assert set(seen.ended) <= true_ends(trace)


def test_sigterm_in_a_model_call(tmp_path: Path, backend: Client, reader: HttpReader) -> None:
    """After its grace everything open is ended as cancelled, and sent before the process ends."""
    with slow_service(tmp_path, backend.addresses.otlp_http) as service:
        api = service.processes["api"]
        question = ask(service)
        seen = in_a_model_call(service, reader, question)
        assert api.process is not None
        api.process.terminate()
        assert api.process.wait(60) == -signal.SIGTERM  # uvicorn says what ended it
        question.is_cut()

        trace = reader.get_trace(question.trace_id)
        assert trace is not None
        check_cancelled(trace, seen)
        assert set(steps(api, question.trace_id)) <= true_ends(trace)


def check_cancelled(trace: Trace, seen: Seen) -> None:
    """None is open, none was cut off, and what was open says that it was cancelled."""
    assert of_the_api(one.span for one in trace.open_spans) == {}
    ended = of_the_api(trace.spans)
    assert set(ended) == true_ends(trace)
    for span_id in seen.cut:
        one = ended[span_id]
        assert one.is_error, one.name
        if not one.name.startswith("POST"):
            assert one.attributes[semconv.SPANLOOM_OUTCOME] == semconv.OUTCOME_CANCELLED, one.name


def test_sigterm_in_a_model_call_with_a_dead_backend(
    tmp_path: Path, backend: Client, reader: HttpReader
) -> None:
    """The process ends all the same; with the spool nothing of its last seconds is lost."""
    spool = tmp_path / "spool"
    with slow_service(tmp_path, backend.addresses.otlp_http) as service:
        # announcements go to the backend, so that the test sees the call; what ended cannot be sent
        api = restart(
            service,
            SPANLOOM_SPOOL_DIR=str(spool),
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{DEAD}/v1/traces",
        )
        question = ask(service)
        seen = in_a_model_call(service, reader, question)
        assert api.process is not None
        api.process.terminate()
        assert api.process.wait(60) == -signal.SIGTERM  # uvicorn says what ended it
        question.is_cut()
        had_ended = steps(api, question.trace_id)
        restart(
            service,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{backend.addresses.otlp_http}/v1/traces",
        )

        def whole() -> Trace | None:
            trace = reader.get_trace(question.trace_id)
            # the backend's own endings stand there until the true ones take their place
            wanted = set(had_ended) | seen.cut
            return trace if trace is not None and wanted <= true_ends(trace) else None

        check_cancelled(eventually(whole, "the spool was not sent"), seen)
