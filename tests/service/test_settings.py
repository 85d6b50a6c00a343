import re
from pathlib import Path

import pytest
from pydantic import AliasChoices, ValidationError

from service.errors import ConfigurationError
from service.settings import Settings, get_settings

ENV_EXAMPLE = Path(__file__).parents[2] / ".env.example"
_ENTRY = re.compile(r"^# (?P<sentence>.+\.)\n#?(?P<name>[A-Z_0-9]+)=(?P<value>.*)$", re.MULTILINE)


def environment_name(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        usual = [str(choice) for choice in alias.choices if not str(choice).startswith("AGENT_")]
        return usual[0]
    return f"AGENT_{field.upper()}"


def written_default(field: str) -> str:
    default = Settings.model_fields[field].get_default(call_default_factory=True)
    if default is None:
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def test_env_example_lists_every_setting_with_its_default_and_sentence() -> None:
    """`.env.example` and the settings module say the same, in the same order."""
    entries = {
        match["name"]: (match["sentence"], match["value"])
        for match in _ENTRY.finditer(ENV_EXAMPLE.read_text())
    }
    expected = {
        environment_name(name): (field.description, written_default(name))
        for name, field in Settings.model_fields.items()
    }

    assert list(entries.items()) == list(expected.items())


def test_env_example_changes_nothing(tmp_path: Path) -> None:
    """Copied as it is to `.env`, the example leaves every default in force."""
    copy = tmp_path / ".env"
    copy.write_text(re.sub(r"^#([A-Z_0-9]+=)", r"\1", ENV_EXAMPLE.read_text(), flags=re.MULTILINE))

    assert Settings(_env_file=copy) == Settings(_env_file=None)


def test_every_setting_has_a_default_and_a_sentence() -> None:
    """Nothing has to be set, and every field explains itself."""
    for name, field in Settings.model_fields.items():
        assert not field.is_required(), name
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("OPENAI_API_KEY", "sk-test", "openai_api_key"),
        ("ANTHROPIC_API_KEY", "sk-ant", "anthropic_api_key"),
        ("DATABASE_URL", "sqlite:///x.sqlite", "database_url"),
        ("VECTOR_STORE_PATH", "somewhere", "vector_store_path"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1", "llm_base_url"),
        ("AGENT_DEADLINE_S", "7.5", "deadline_s"),
        ("AGENT_WORKERS", "4", "workers"),
        ("AGENT_CORS_ORIGINS", '["https://example.org"]', "cors_origins"),
    ],
)
def test_the_usual_names_are_honoured(
    variable: str, value: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that other tools use work here too."""
    before = getattr(Settings(_env_file=None), field)
    monkeypatch.setenv(variable, value)

    after = getattr(Settings(_env_file=None), field)

    assert before != after


def test_keys_are_never_printed() -> None:
    """A settings object in a log line does not leak keys or database passwords."""
    settings = Settings(
        _env_file=None,
        openai_api_key="sk-secret",
        anthropic_api_key="sk-ant-secret",
        database_url="postgresql://u:secret@host/db",
    )

    assert "secret" not in repr(settings)
    assert "secret" not in settings.model_dump_json()


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline_s": 0},
        {"api_port": 70_000},
        {"max_body_bytes": 1},
        {"workers": 0},
        {"llm_base_url": "localhost:11434"},
        {"retrieval_url": "retrieval:8001"},
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """A bad value stops the start, not the thousandth request."""
    with pytest.raises(ValidationError):
        Settings(_env_file=None, **wrong)


def test_every_wrong_variable_is_named_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence for all of them; what was given may be a secret in the wrong place."""
    monkeypatch.setenv("AGENT_API_PORT", "hunter2")
    monkeypatch.setenv("AGENT_WORKERS", "0")
    get_settings.cache_clear()
    try:
        with pytest.raises(ConfigurationError) as refusal:
            get_settings()
    finally:
        get_settings.cache_clear()

    assert "AGENT_API_PORT" in str(refusal.value)
    assert "AGENT_WORKERS" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_misspelt_name_is_not_passed_over(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The setting that was meant is named; what other programs call AGENT_… is left alone."""
    monkeypatch.chdir(tmp_path)
    names = {"AGENT_DEADLIN_S": "7", "AGENT_NAME": "build-agent-3"}
    for name, value in names.items():
        if where == "environment":
            monkeypatch.setenv(name, value)
        else:
            with Path(".env").open("a", encoding="utf-8") as dotenv:
                dotenv.write(f"# 期限\n{name}={value}\n")
    get_settings.cache_clear()
    try:
        with pytest.raises(ConfigurationError) as refusal:
            get_settings()
    finally:
        get_settings.cache_clear()

    assert str(refusal.value) == "Not a setting: AGENT_DEADLIN_S, did you mean AGENT_DEADLINE_S?"


@pytest.mark.parametrize(
    ("given", "provider"),
    [
        ({}, "offline"),
        ({"openai_api_key": "k"}, "openai"),
        ({"anthropic_api_key": "k"}, "anthropic"),
        ({"openai_api_key": "k", "llm_base_url": "http://127.0.0.1:1/v1"}, "openai_compatible"),
        ({"openai_api_key": "k", "llm_provider": "offline"}, "offline"),
    ],
)
def test_the_provider_follows_from_what_is_set(given: dict[str, str], provider: str) -> None:
    """No key means offline; a key or an address picks its provider; the setting wins."""
    assert Settings(_env_file=None, **given).provider == provider
