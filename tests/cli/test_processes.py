from pathlib import Path

import pytest

from spanloom.cli.processes import (
    ProcessFile,
    Request,
    expand,
    load_processes,
    port_in_force,
    read_dotenv,
)
from spanloom.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
GOOD = """
[env]
DATA = "{data_dir}"

[[process]]
name = "search-index"
command = ["{python}", "-m", "search", "{search_index_port}"]
port = 9001
port_env = "SEARCH_PORT"
health = "/health"
request = { path = "/ask", body = '{"q": "中文"}' }
"""


def load(tmp_path: Path, text: str) -> ProcessFile:
    path = tmp_path / "processes.toml"
    path.write_text(text, encoding="utf-8")
    return load_processes(path)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    """Processes keep their order, and every key arrives."""
    file = load(tmp_path, GOOD)

    (process,) = file.processes
    assert (process.name, process.port, process.port_env) == ("search-index", 9001, "SEARCH_PORT")
    assert process.placeholder == "search_index_port"
    assert process.request == Request("/ask", '{"q": "中文"}')
    assert file.env == {"DATA": "{data_dir}"}


def test_the_checkout_s_own_file_is_valid() -> None:
    """`spanloom up` without arguments finds something to start, and a request to offer."""
    file = load_processes(ROOT / "service" / "processes.toml")

    assert [process.request for process in file.processes if process.request]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("port = 9001", 'port = "x"'), "port must be a number from 1 to 65535"),
        (("port = 9001", "port = 0"), "port must be a number from 1 to 65535"),
        (("port = 9001", "prot = 9001"), "unknown keys: prot"),
        (('name = "search-index"', 'name = "backend"'), "not 'backend'"),
        (('name = "search-index"', 'name = "../x"'), "must be lowercase"),
        (('"{python}", "-m", "search", "{search_index_port}"', ""), "command must be a list"),
        (('health = "/health"', ""), "health must be a text"),
        (('DATA = "{data_dir}"', "DATA = 3"), r"\[env\] must be a table of texts"),
        (("[[process]]", "[[procces]]"), "unknown keys: procces"),
        (("[[process]]", "[[process"), "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """A typing error does not turn into a process that starts wrongly."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(tmp_path, GOOD.replace(*change))

    assert str(tmp_path / "processes.toml") in str(caught.value)


def test_a_name_or_variable_twice_is_refused(tmp_path: Path) -> None:
    """Two processes cannot share a log, nor a port variable."""
    with pytest.raises(ConfigurationError, match="name search-index occurs more than once"):
        load(tmp_path, GOOD + GOOD.partition("[[process]]")[2].join(("[[process]]", "")))


def test_an_unknown_placeholder_lists_the_known_ones() -> None:
    """`{pyhton}` does not reach a command line."""
    assert expand("{a}-{b}", {"a": "1", "b": "2"}) == "1-2"
    assert expand('{"json": 1} {a}', {"a": "1"}) == '{"json": 1} 1'
    with pytest.raises(ConfigurationError, match=r"\{c\} in processes.toml is not known: \{a\}"):
        expand("{c}", {"a": "1"})


def test_a_port_comes_from_the_environment_then_dotenv_then_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same order in which the processes themselves look."""
    (process,) = load(tmp_path, GOOD).processes

    monkeypatch.delenv("SEARCH_PORT", raising=False)
    assert port_in_force(process, {}) == 9001
    assert port_in_force(process, {"SEARCH_PORT": "9002"}) == 9002
    monkeypatch.setenv("SEARCH_PORT", "9003")
    assert port_in_force(process, {"SEARCH_PORT": "9002"}) == 9003
    for wrong in ("x", "70000", "-1", "٣"):
        monkeypatch.setenv("SEARCH_PORT", wrong)
        with pytest.raises(ConfigurationError, match="is not a port from 1 to 65535"):
            port_in_force(process, {})


def test_dotenv_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    """Quotes, `export`, comments and empty values; no file is no variables."""
    path = tmp_path / ".env"
    path.write_text(
        "# A=0\nA=1\nexport B='2 # two' # three\nC = \"值\"\nD=4 # four\nE=\n\nnonsense\n",
        encoding="utf-8",
    )
    dotenv_values = pytest.importorskip("dotenv").dotenv_values

    assert read_dotenv(path) == {"A": "1", "B": "2 # two", "C": "值", "D": "4", "E": ""}
    theirs = {name: value for name, value in dotenv_values(path).items() if value is not None}
    assert read_dotenv(path) == theirs
    assert read_dotenv(tmp_path / "none") == {}
