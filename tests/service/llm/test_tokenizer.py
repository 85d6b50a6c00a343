"""Token counts without a network."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.llm.tokenizer import (
    CACHE_DIR_VARIABLE,
    VOCABULARIES,
    Tokenizer,
    content_text,
    install_vocabularies,
)
from tests.service.llm.running import ROOT

OFFLINE_SCRIPT = """
import socket, sys
def no_network(*arguments, **options):
    raise OSError("the network was used")
socket.socket.connect = no_network
socket.getaddrinfo = no_network
from pathlib import Path
from service.llm.tokenizer import load_tokenizer
print(load_tokenizer(Path(sys.argv[1])).count(sys.argv[2]))
import tiktoken
print(len(tiktoken.get_encoding("cl100k_base").encode("plain tiktoken works too")))
"""


def _install(directory: Path) -> None:
    os.environ.pop(CACHE_DIR_VARIABLE, None)
    install_vocabularies(directory)


def _whole(directory: Path) -> bool:
    return all(
        hashlib.sha256((directory / each.cache_name).read_bytes()).hexdigest() == each.sha256
        for each in VOCABULARIES
    )


def test_it_counts_without_a_network(tmp_path: Path) -> None:
    """A fresh machine counts o200k tokens, and all other users of tiktoken work, offline."""
    environment = {key: value for key, value in os.environ.items() if key != CACHE_DIR_VARIABLE}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            OFFLINE_SCRIPT,
            str(tmp_path / "a b"),
            "tiktoken is great!",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    assert done.stdout.split() == ["6", "5"]


def test_published_counts_are_met(tokenizer: Tokenizer) -> None:
    """Counts of o200k_base that OpenAI's cookbook states."""
    assert tokenizer.count("antidisestablishmentarianism") == 6
    assert tokenizer.count("2 + 2 = 4") == 7
    assert tokenizer.count("お誕生日おめでとう") == 8


def test_processes_may_unpack_at_once(tmp_path: Path) -> None:
    """Files appear whole, whoever else is writing them."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_install, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * 3
    assert _whole(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(VOCABULARIES)


def test_a_damaged_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that was cut short is unpacked anew, where the environment wants it."""
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path))
    (tmp_path / VOCABULARIES[0].cache_name).write_bytes(b"half")

    assert install_vocabularies(tmp_path / "elsewhere") == tmp_path
    assert _whole(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@given(text=st.text(max_size=200))
def test_token_bytes_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Encoding loses nothing, special tokens included."""
    text = f"{text}<|endoftext|>"
    ids = tokenizer.encode(text)

    assert b"".join(tokenizer.token_bytes(ids)).decode() == text
    assert tokenizer.decode(ids) == text


def test_a_long_run_of_blanks_is_counted(tokenizer: Tokenizer) -> None:
    """A million blanks, on which tiktoken alone panics, have a count."""
    assert 0 < tokenizer.count("x" + " " * 1_000_000 + "y") < 20_000


def test_content_may_be_parts() -> None:
    """A message's content is a string, a list of parts, or absent."""
    assert content_text("a") == "a"
    assert content_text([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"
    assert content_text(None) == ""
