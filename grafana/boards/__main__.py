"""Writes grafana/dashboards/*.json; with `--check` says which of them are not up to date."""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import agent, cost, pipeline, service, timeouts

DASHBOARDS: Final = Path(__file__).parents[1] / "dashboards"
MODULES: Final = (service, agent, cost, timeouts, pipeline)


def generate() -> dict[str, str]:
    """File name and text of each dashboard; panels are numbered in their order."""
    files = {}
    for module in MODULES:
        made = module.dashboard().build()
        for number, panel in enumerate(made.panels or [], start=1):
            panel.id_val = number
        text = json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False)
        files[f"{made.uid}.json"] = text + "\n"
    return files


def main() -> int:
    """Exit code 0, or 1 where a file differs under `--check`."""
    parser = argparse.ArgumentParser(prog="python -m grafana.boards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    files = generate()
    present = {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS.glob("*.json")}
    stale = sorted(name for name in files | present if files.get(name) != present.get(name))
    if check:
        for name in stale:
            sys.stderr.write(f"{name} is not what grafana/boards makes: python -m grafana.boards\n")
        return 1 if stale else 0
    DASHBOARDS.mkdir(exist_ok=True)
    for name in stale:
        if name in files:
            (DASHBOARDS / name).write_text(files[name], encoding="utf-8")
        else:
            (DASHBOARDS / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
