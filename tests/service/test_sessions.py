import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.errors import ConfigurationError
from service.session_file import session_file
from service.sessions import open_sessions, thread_id
from service.settings import Settings
from tests.service.conftest import Api, Start
from tests.service.loopback import FakeLLM

IDS = st.text(alphabet="ab-", min_size=1, max_size=4)


def settings_for(folder: Path, **more: str) -> Settings:
    return Settings(_env_file=None, data_dir=folder, **more)


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


async def test_the_second_question_knows_the_first(api: Api, llm: FakeLLM) -> None:
    """Earlier turns reach the model as an ordinary conversation; other sessions see nothing."""
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


async def test_two_applications_on_one_file_share_the_conversation(
    start: Start, llm: FakeLLM
) -> None:
    """Whichever worker gets the next question knows the last."""
    first, second = await start(), await start()

    await first.ask("What is the KV cache?", session_id="s")
    await second.ask("And its memory?", session_id="s")

    assert "What is the KV cache?" in llm.prompt("generate")


async def test_requests_in_one_session_take_turns_also_across_applications(
    start: Start, llm: FakeLLM, spans: InMemorySpanExporter
) -> None:
    """The second begins when the first has ended, knows its answer, and shows its wait."""
    first, second = await start(), await start()
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


async def test_a_lock_is_held_by_one_and_free_after_an_error(tmp_path: Path) -> None:
    """However a turn ends, the next one may begin; never two at a time."""
    running = 0

    async def turn(sessions_of: int, *, fail: bool) -> None:
        nonlocal running
        async with opened[sessions_of].turn("thread"):
            running += 1
            assert running == 1
            await asyncio.sleep(0.002)
            running -= 1
            if fail:
                raise LookupError

    settings = settings_for(tmp_path)
    async with open_sessions(settings) as one, open_sessions(settings) as two:
        opened = [one, two]
        ended = await asyncio.gather(
            *(turn(number % 2, fail=number % 3 == 0) for number in range(30)),
            return_exceptions=True,
        )

    assert sum(isinstance(end, LookupError) for end in ended) == 10
    assert sum(end is None for end in ended) == 20


async def test_a_waiter_that_gives_up_leaves_the_queue(tmp_path: Path) -> None:
    """A cancelled wait takes nothing with it."""
    async with open_sessions(settings_for(tmp_path)) as sessions:

        async def take() -> None:
            async with sessions.turn("thread"):
                pass

        async with sessions.turn("thread"):
            waiting = [asyncio.create_task(take()) for _ in range(3)]
            await asyncio.sleep(0.02)
            waiting[0].cancel()
            waiting[1].cancel()
        await asyncio.wait_for(waiting[2], 20)


async def test_a_turn_that_begins_as_another_ends_waits_behind_those_who_wait(
    tmp_path: Path,
) -> None:
    """Between the end of one turn and the waking of the next in line nobody may push in.

    The one would hold the file and the other the queue, each waiting for the other.
    """
    order: list[str] = []
    async with open_sessions(settings_for(tmp_path)) as sessions:

        async def wait() -> None:
            async with sessions.turn("thread"):
                order.append("waiter")

        async with sessions.turn("thread"):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.02)
        async with asyncio.timeout(20), sessions.turn("thread"):
            order.append("late")
        await asyncio.wait_for(waiting, 20)

    assert order == ["waiter", "late"]


def test_the_database_is_where_the_settings_say(tmp_path: Path) -> None:
    """The data folder by default, a SQLite address if given."""
    assert session_file(settings_for(tmp_path)) == tmp_path / "sessions.sqlite"
    absolute = settings_for(tmp_path, database_url="sqlite:////srv/my%20data/s.sqlite")
    assert session_file(absolute) == Path("/srv/my data/s.sqlite")
    relative = settings_for(tmp_path, database_url="sqlite:///s.sqlite")
    assert session_file(relative) == Path("s.sqlite")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:hunter2@host/db",
        "postgres://user:hunter2@host/db",
        "postgresql+psycopg://user:hunter2@host/db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://user:hunter2@host/db",
        "nonsense",
    ],
)
def test_an_address_that_cannot_work_says_what_would(tmp_path: Path, address: str) -> None:
    """The message names the setting and the way out, and no password."""
    with pytest.raises(ConfigurationError) as refusal:
        session_file(settings_for(tmp_path, database_url=address))

    assert "DATABASE_URL" in str(refusal.value)
    assert "sqlite:///" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
