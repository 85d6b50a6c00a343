"""The observed production agent service: API, agent, retrieval, LLM endpoint.

Of this repository it imports `spanloom.telemetry` only, as any other user's service would.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _version() -> str:
    try:
        return version("spanloom")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"


VERSION: Final = _version()
"""What /health and the telemetry of all three processes say."""
