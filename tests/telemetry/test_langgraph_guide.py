"""Every code block of docs/langgraph.md runs, and does what the text says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spanloom import ports
from tests.telemetry.live import ROOT, Receiver, child_environment

GUIDE = (ROOT / "docs" / "langgraph.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
FILES = {
    block.partition("\n")[0].removeprefix("# "): block for kind, block in BLOCKS if kind == "python"
}
SCRIPTS = [block for kind, block in BLOCKS if kind == "sh"]
(CONTENT,) = (block for kind, block in BLOCKS if kind == "json")
TREE, REPORT = (block for kind, block in BLOCKS if kind == "text")
NAMES = sorted(line.strip() for line in TREE.splitlines())


@pytest.fixture
def run(tmp_path: Path, receiver: Receiver) -> Any:
    for name, block in FILES.items():
        (tmp_path / name).write_text(block, encoding="utf-8")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=child_environment(
                PATH=tools,
                PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}",
                OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            ),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )

    return run


def test_the_guide_has_no_block_that_is_not_run() -> None:
    """A new block has to be named in a test below."""
    assert list(FILES) == [
        *("my_app.py", "one_line.py", "explicit.py", "with_content.py"),
        *("test_my_app.py", "test_wrong.py", "repeatable.py"),
    ]
    assert len(SCRIPTS) == 1
    assert {kind for kind, _ in BLOCKS} == {"python", "sh", "text", "json"}


@pytest.mark.parametrize("name", ["my_app.py", "one_line.py", "explicit.py", "sh"])
def test_each_way_sends_the_trace_of_the_guide(run: Any, receiver: Receiver, name: str) -> None:
    """The program answers as before, and the spans drawn arrive; without set-up none do."""
    if name == "sh":
        default = f"http://127.0.0.1:{ports.OTLP_HTTP}"
        assert default in SCRIPTS[0]
        done = run("sh", "-euc", SCRIPTS[0].replace(default, receiver.url))
    else:
        done = run(sys.executable, name)

    assert done.returncode == 0, done.stderr
    assert "A tree of spans." in done.stdout
    names = sorted(span.name for span in receiver.spans)
    assert names == ([] if name == "my_app.py" else NAMES), done.stderr


def test_the_tests_of_the_guide_pass_and_fail_as_it_says(run: Any) -> None:
    """The first passes; the second fails and shows the trace of the guide, times apart."""
    options = ("-m", "pytest", "-p", "no:cacheprovider", "-q")
    passed = run(sys.executable, *options, "test_my_app.py")
    assert passed.returncode == 0, passed.stdout
    failed = run(sys.executable, *options, "test_wrong.py")
    assert failed.returncode == 1

    def without_times(text: str) -> list[str]:
        lines = [re.sub(r" +\d+\.\d ms", " N ms", line).rstrip() for line in text.splitlines()]
        return [re.sub(r"^-+ (.*) -+$", r"\1", line) for line in lines]

    shown = without_times(failed.stdout)
    start = shown.index("Spanloom trace")
    wanted = without_times(REPORT)
    assert shown[start : start + len(wanted)] == wanted


def test_content_is_captured_as_the_guide_shows(run: Any) -> None:
    """The example prints what stands below it: secrets and the mail address are gone."""
    done = run(sys.executable, "with_content.py")

    assert done.returncode == 0, done.stderr
    assert done.stdout == CONTENT


def test_times_and_ids_repeat(run: Any) -> None:
    """Two runs of the last example print the same picture, byte for byte."""
    first, second = run(sys.executable, "repeatable.py"), run(sys.executable, "repeatable.py")
    assert first.returncode == 0, first.stderr
    assert "info answered length=16" in first.stdout
    assert first.stdout == second.stdout
