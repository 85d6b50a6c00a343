import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group

from spanloom.cli.app import app
from spanloom.cli.reference import reference

ROOT = Path(__file__).parents[2]
COMMANDS = get_group(app).commands
EVERY_COMMAND = COMMANDS | {
    f"{name} {below}": command
    for name, group in COMMANDS.items()
    for below, command in getattr(group, "commands", {}).items()
}


def test_the_page_is_up_to_date() -> None:
    """docs/cli.md is what `python -m spanloom.cli.reference` prints."""
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    assert written == reference(), "run: python -m spanloom.cli.reference > docs/cli.md"


@pytest.mark.parametrize("name", EVERY_COMMAND)
def test_every_command_has_help_with_examples(name: str) -> None:
    """A sentence, examples, and a word on each option."""
    command = EVERY_COMMAND[name]

    assert command.help
    assert "Examples:\n" in command.help
    assert f"\n  spanloom {name}" in command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_every_command_has_a_file_of_its_own() -> None:
    """`spanloom/cli/NAME.py` is where to look for it."""
    for name in COMMANDS:
        assert (ROOT / "spanloom" / "cli" / f"{name}.py").is_file()


def run_python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_missing_extra_is_one_sentence() -> None:
    """Without `server` (-S: no installed package) it says how to install it, exit code 2."""
    result = run_python("-S", "-c", "from spanloom.cli.main import main; main(['traces'])")

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "spanloom: The spanloom command needs an extra: pip install 'spanloom[server]'\n"
    )


def test_help_loads_neither_server_nor_sdk() -> None:
    """`spanloom --help` and `spanloom traces --help` answer at once."""
    result = run_python(
        "-c",
        "import sys\n"
        "from spanloom.cli.main import main\n"
        "try:\n"
        "    main(['traces', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'uvicorn', 'grpc', 'sqlite3', 'opentelemetry.sdk', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n",
    )

    assert result.stderr == "[]\n"


def test_the_version_is_printed() -> None:
    """For bug reports."""
    result = run_python("-c", "from spanloom.cli.main import main; main(['--version'])")

    assert result.stdout.startswith("spanloom ")
