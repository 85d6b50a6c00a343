"""Conversations as the callers of the API see them, on every engine of the session memory."""

import asyncio
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.sessions import thread_id
from tests.service.conftest import Api, Start
from tests.service.loopback import FakeLLM

IDS = st.text(alphabet="ab-", min_size=1, max_size=4)

pytestmark = pytest.mark.xdist_group("sessions")


@pytest.fixture(params=["sqlite", "postgres"])
def memory(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings of an API that name an empty memory, once for each engine."""
    if request.param == "sqlite":
        return {}
    return {"database_url": request.getfixturevalue("server").url()}


@given(IDS, IDS, IDS, IDS)
def test_different_users_and_sessions_never_share_a_conversation(
    user: str, session: str, other_user: str, other_session: str
) -> None:
    """("a-b", "c") and ("a", "b-c") are two conversations."""
    same = (user, session) == (other_user, other_session)

    assert (thread_id(user, session) == thread_id(other_user, other_session)) is same


def test_only_the_anonymous_default_has_no_conversation() -> None:
    """Anybody may be anonymous in the default session, so it belongs to nobody."""
    assert thread_id("anonymous", "default") is None
    assert thread_id("anonymous", "mine") is not None
    assert thread_id("alice", "default") is not None


async def test_the_file_of_conversations_is_its_owners_alone(start: Start) -> None:
    """Other users of the host cannot read what was asked, in the files beside it neither."""
    api = await start()
    await api.ask("What is the KV cache?", session_id="s", user_id="alice")

    files = {path.name: path for path in api.settings.data_dir.glob("sessions.sqlite*")}
    assert {"sessions.sqlite", "sessions.sqlite-wal"} <= files.keys()
    assert {oct(path.stat().st_mode & 0o777) for path in files.values()} == {"0o600"}


async def test_the_second_question_knows_the_first(
    start: Start, memory: dict[str, Any], llm: FakeLLM
) -> None:
    """Earlier turns reach the model as an ordinary conversation; other sessions see nothing."""
    api = await start(**memory)
    await api.ask("What is the KV cache?", session_id="s", user_id="alice")
    await api.ask("And its memory?", session_id="s", user_id="alice")

    messages = llm.requests[-2][1]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == "What is the KV cache?"
    assert messages[2]["content"] == "The cache keeps keys and values [1]."

    await api.ask("And its memory?", session_id="s", user_id="bob")
    assert "What is the KV cache?" not in llm.prompt("generate")


async def test_anonymous_default_requests_remember_nothing(api: Api, llm: FakeLLM) -> None:
    """No thread of theirs is even written down."""
    await api.ask("What is the KV cache?")
    await api.ask("And its memory?")

    assert "What is the KV cache?" not in llm.prompt("generate")
    with sqlite3.connect(api.settings.data_dir / "sessions.sqlite") as file:
        assert file.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


async def test_passages_and_tools_of_one_turn_do_not_leak_into_the_next(
    api: Api, llm: FakeLLM
) -> None:
    """Only the conversation lives on."""
    llm.tool_calls = [[("calculator", {"expression": "6*7"})]]
    await api.ask("What is six times seven?", session_id="s")
    await api.ask("What is the KV cache?", session_id="s")

    last = llm.requests[-2][1]["messages"][-1]["content"]
    assert "tool_results" not in last
    assert last.count("(kv-cache)") == 1


async def test_two_applications_on_one_memory_share_the_conversation(
    start: Start, memory: dict[str, Any], llm: FakeLLM
) -> None:
    """Whichever worker gets the next question knows the last."""
    first, second = await start(**memory), await start(**memory)

    await first.ask("What is the KV cache?", session_id="s")
    await second.ask("And its memory?", session_id="s")

    assert "What is the KV cache?" in llm.prompt("generate")


async def test_requests_in_one_session_take_turns_also_across_applications(
    start: Start, memory: dict[str, Any], llm: FakeLLM, spans: InMemorySpanExporter
) -> None:
    """The second begins when the first has ended, knows its answer, and shows its wait."""
    first, second = await start(**memory), await start(**memory)
    llm.pause.clear()
    earlier = asyncio.create_task(first.ask("What is the KV cache?", session_id="s"))
    await asyncio.wait_for(llm.paused.wait(), 20)
    later = [
        asyncio.create_task(api.ask("And its memory?", session_id="s")) for api in (first, second)
    ]
    elsewhere = asyncio.create_task(second.ask("Something else", session_id="t"))
    await llm.seen("generate", 2)  # the other session is not held up
    assert llm.kinds().count("route") == 2

    llm.pause.set()
    answers = await asyncio.gather(earlier, *later, elsewhere)

    assert [answer.status_code for answer in answers] == [200] * 4
    prompts = [llm.prompt("generate", turn) for turn in range(4)]
    assert sum("What is the KV cache?" in prompt for prompt in prompts) == 3
    waits = [span for span in spans.get_finished_spans() if span.name == "session_wait"]
    assert len(waits) == 2


async def test_many_turns_keep_the_file_and_the_prompt_small(start: Start, llm: FakeLLM) -> None:
    """One checkpoint a conversation, and a bounded conversation."""
    api = await start()
    llm.pieces = ["word " * 400]
    for number in range(12):
        assert (await api.ask(f"Question {number}", session_id="s")).status_code == 200

    assert "Question 10" in llm.prompt("generate")
    assert "Question 1\\n" not in llm.prompt("generate")
    assert len(llm.prompt("generate")) < 10_000
    with sqlite3.connect(api.settings.data_dir / "sessions.sqlite") as file:
        assert file.execute("SELECT count(*) FROM checkpoints").fetchone() == (1,)
    assert list((api.settings.data_dir / "locks").iterdir()) == []
