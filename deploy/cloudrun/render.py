"""Fill in the variables of service.yaml and print what `gcloud run services replace` takes.

    PROJECT=… REGION=… TAG=… COLLECTOR_HOST=… python3 deploy/cloudrun/render.py > service.yaml

Exit code 2 and one line that names every variable that is missing or cannot be right. Standard
library only.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Final

FILE: Final = Path(__file__).with_name("service.yaml")

# What a value may look like: they are put into YAML and into image names as they are.
_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    "PROJECT": ("the project's id", r"[a-z][a-z0-9-]{4,28}[a-z0-9]"),
    "REGION": ("for example europe-west1", r"[a-z]+-[a-z]+[0-9]+"),
    "TAG": ("of the images, the commit they were built from", r"[\w][\w.-]{0,127}"),
    "IMAGE": ("name of the images without their tag", rf"{_HOST}(/[a-z0-9][a-z0-9._-]*)+"),
    "COLLECTOR_HOST": ("name of your Collector, as in its certificate", _HOST),
    "NETWORK": ("the VPC network that PostgreSQL and the Collector are in", r"[a-z][a-z0-9-]*"),
    "SUBNETWORK": ("its subnetwork in the region", r"[a-z][a-z0-9-]*"),
}
DEFAULTS: Final = {
    "IMAGE": "{REGION}-docker.pkg.dev/{PROJECT}/spanloom/agent",
    "NETWORK": "default",
    "SUBNETWORK": "default",
}


class VariableError(ValueError):
    """A variable is missing or cannot be right."""


def render(environment: Mapping[str, str], text: str) -> str:
    """The file with every `${NAME}` filled in; VariableError names all that are wrong."""
    values = {name: environment.get(name, "") for name in VARIABLES}
    for name, default in DEFAULTS.items():
        values[name] = values[name] or default.format(**values)
    wrong = [
        f"{name} ({VARIABLES[name][0]}) {'is ' + repr(value) if value else 'is not set'}"
        for name, value in values.items()
        # what a default is made of is named itself
        if not re.fullmatch(VARIABLES[name][1], value) and environment.get(name, "") == value
    ]
    if wrong:
        raise VariableError("; ".join(wrong))
    return Template(text).substitute(values)


def main() -> int:
    """Print the file; the exit status."""
    try:
        rendered = render(os.environ, FILE.read_text(encoding="utf-8"))
    except VariableError as error:
        sys.stderr.write(f"Set what cannot be filled in: {error}.\n")
        return 2
    sys.stdout.write(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
