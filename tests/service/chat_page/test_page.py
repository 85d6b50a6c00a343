"""The page, run by Streamlit's own harness, over a running API."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from streamlit.testing.v1 import AppTest

from service.settings import Settings, get_settings
from tests.free_ports import free_port
from tests.service.conftest import Api, Start
from tests.service.loopback import USAGE, FakeLLM

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "service" / "chat_ui.py"
WAIT_S = 60
TRACES = "https://jaeger.example/trace/{trace_id}"


class Page:
    """One visitor. Blocks while the page works, so it is used from a thread."""

    def __init__(self) -> None:
        self.app = AppTest.from_file(str(PAGE), default_timeout=WAIT_S)

    async def open(self) -> None:
        await asyncio.to_thread(self.app.run)
        self.check()

    async def ask(self, question: str) -> None:
        await asyncio.to_thread(lambda: self.app.chat_input[0].set_value(question).run())
        self.check()

    def check(self) -> None:
        assert not self.app.exception

    def said(self) -> list[str]:
        """Questions and answers, from top to bottom."""
        return [message.children[0].value for message in self.app.chat_message]

    def captions(self) -> list[str]:
        return [caption.value for caption in self.app.main.caption]


@pytest.fixture
def point_to(monkeypatch: pytest.MonkeyPatch, telemetry: object) -> Iterator[Any]:
    """Point the page to an API, by the settings a person would use."""
    monkeypatch.setenv("AGENT_CHAT_TRACE_URL", TRACES)

    def point(url: str, **more: str) -> None:
        monkeypatch.setenv("AGENT_CHAT_API_URL", url)
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    yield point
    get_settings.cache_clear()


@pytest.fixture
async def page(start: Start, point_to: Any) -> tuple[Page, Api]:
    api = await start()
    point_to(str(api.client.base_url))
    page = Page()
    await page.open()
    return page, api


async def test_an_answer_shows_sources_time_tokens_and_its_trace(
    page: tuple[Page, Api], llm: FakeLLM
) -> None:
    """In Chinese as in English; the trace is a link to where the setting says."""
    visitor, _ = page
    llm.pieces = ["缓存保存", "键和值 [1]。"]

    await visitor.ask("什么是 KV 缓存？")

    assert visitor.said() == ["什么是 KV 缓存？", "缓存保存键和值 [1]。"]
    (expander,) = visitor.app.expander
    assert expander.label == f"Sources ({len(expander.text)})"
    assert expander.text[0].value
    (caption,) = visitor.captions()
    assert " s · " in caption
    assert f"{4 * USAGE['prompt_tokens']} → {4 * USAGE['completion_tokens']} tokens" in caption
    assert "](https://jaeger.example/trace/" in caption
    assert not visitor.app.error


async def test_a_session_remembers_and_a_new_one_does_not(
    page: tuple[Page, Api], llm: FakeLLM
) -> None:
    """The second question knows the first, the page still shows both; a new start forgets."""
    visitor, _ = page
    await visitor.ask("What is the KV cache?")
    await visitor.ask("And its memory?")

    assert "What is the KV cache?" in llm.prompt("generate")
    assert visitor.said()[::2] == ["What is the KV cache?", "And its memory?"]
    session = visitor.app.text_input[0].value

    await asyncio.to_thread(lambda: visitor.app.button[0].click().run())
    visitor.check()
    assert visitor.said() == []
    assert visitor.app.text_input[0].value != session
    await visitor.ask("And now?")
    assert "What is the KV cache?" not in llm.prompt("generate")


async def test_a_session_is_taken_up_by_its_id(page: tuple[Page, Api], llm: FakeLLM) -> None:
    """Another visitor with the same id goes on where the first one was."""
    visitor, _ = page
    await visitor.ask("What is the KV cache?")
    other = Page()
    await other.open()
    session = visitor.app.text_input[0].value
    await asyncio.to_thread(lambda: other.app.text_input[0].set_value(session).run())

    await other.ask("And its memory?")

    assert "What is the KV cache?" in llm.prompt("generate")


async def test_the_deadline_is_told_with_the_trace(
    start: Start, point_to: Any, llm: FakeLLM
) -> None:
    """The service says that it was late; what had come stays, and the next question works."""
    llm.pause.clear()
    api = await start(deadline_s=8)
    point_to(str(api.client.base_url))
    visitor = Page()
    await visitor.open()

    await visitor.ask("慢吗？")

    assert visitor.said() == ["慢吗？", "The cache"]
    (error,) = visitor.app.error
    assert "8 s" in error.value
    assert "](https://jaeger.example/trace/" in error.value

    llm.pause.set()
    await visitor.ask("And now?")
    assert visitor.said()[-1] == "The cache keeps keys and values [1]."
    assert len(visitor.app.error) == 1  # the old one is still there to be read


async def test_the_page_has_a_limit_of_its_own(start: Start, point_to: Any, llm: FakeLLM) -> None:
    """For a service that does not even keep its deadline."""
    llm.pause.clear()
    api = await start()
    point_to(str(api.client.base_url), AGENT_DEADLINE_S="2", AGENT_CHAT_TIMEOUT_S="8")
    visitor = Page()
    await visitor.open()

    await visitor.ask("Q")

    assert "within 8 s" in visitor.app.error[0].value
    assert "](https://jaeger.example/trace/" in visitor.app.error[0].value
    await asyncio.wait_for(llm.dropped.wait(), WAIT_S)


async def test_a_refused_question_says_which_field(
    page: tuple[Page, Api], spans: InMemorySpanExporter
) -> None:
    """On the page, and on the page's span, which did not go well either."""
    visitor, _ = page
    await asyncio.to_thread(lambda: visitor.app.text_input[0].set_value("not an id!").run())

    await visitor.ask("Q")

    assert visitor.app.error[0].value.startswith("session_id: ")
    (asked,) = (span for span in spans.get_finished_spans() if span.name == "ask")
    assert asked.status.status_code is StatusCode.ERROR
    assert f"{asked.context.trace_id:032x}" in visitor.app.error[0].value


async def test_a_service_that_is_down_is_said_and_found_again(
    start: Start, point_to: Any, llm: FakeLLM
) -> None:
    """The page lives without the service, and works as soon as it is there."""
    port = free_port()
    point_to(f"http://127.0.0.1:{port}")
    visitor = Page()
    await visitor.open()

    await visitor.ask("Q")
    assert f"127.0.0.1:{port}" in visitor.app.error[0].value

    api = await start()
    point_to(str(api.client.base_url))
    await visitor.ask("Q")
    assert visitor.said()[-1] == "The cache keeps keys and values [1]."


def test_the_page_waits_longer_than_the_service_may_take() -> None:
    """By default and by setting; a setting that would not is refused."""
    assert Settings(_env_file=None, deadline_s=300).chat_patience_s > 300
    with pytest.raises(ValueError, match="AGENT_CHAT_TIMEOUT_S"):
        Settings(_env_file=None, deadline_s=30, chat_timeout_s=30)


def start_page(*, python: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *python, "-m", "service.chat_page"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_missing_extra_is_one_sentence(tmp_path: Path) -> None:
    """As it is without Streamlit: the site packages are there, Streamlit is not."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'streamlit' else find(name, *a)\n"
    )

    code, errors = start_page(PYTHONPATH=str(tmp_path))

    assert code == 1
    assert errors == "The chat page needs an extra: pip install 'spanloom[ui]'\n"


def test_a_setting_that_cannot_work_is_one_sentence() -> None:
    code, errors = start_page(AGENT_DEADLINE_S="30", AGENT_CHAT_TIMEOUT_S="20")

    assert code == 1
    assert "AGENT_CHAT_TIMEOUT_S must be longer" in errors
    assert len(errors.splitlines()) == 1


async def test_the_page_is_served_and_ends_on_sigterm() -> None:
    """`python -m service.chat_page` on its port, at once and without asking anything."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.chat_page"),
        env={**os.environ, "AGENT_CHAT_PORT": str(port), "OTEL_TRACES_EXPORTER": "none"},
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with (
            asyncio.timeout(WAIT_S),
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            while True:
                assert process.returncode is None
                with suppress(httpx2.TransportError):
                    health = await http.get("/_stcore/health")
                    break
                await asyncio.sleep(0.2)
            page = await http.get("/")
        process.terminate()
        code = await asyncio.wait_for(process.wait(), WAIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert health.text == "ok"
    assert page.status_code == 200
    assert code == 0
