"""Each port is written once; every configuration file agrees with it."""

import tomllib
from pathlib import Path

from service.settings import Settings

ROOT = Path(__file__).parents[2]


def test_processes_use_the_ports_of_the_settings() -> None:
    """service/processes.toml names for each process the default of the setting it names."""
    processes = tomllib.loads((ROOT / "service/processes.toml").read_text())["process"]
    defaults = {
        f"AGENT_{name.upper()}": field.default for name, field in Settings.model_fields.items()
    }

    assert {"retrieval", "offline-llm", "api"} == {process["name"] for process in processes}
    for process in processes:
        assert defaults[process["port_env"]] == process["port"], process["name"]
