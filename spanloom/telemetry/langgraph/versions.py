"""Releases of LangGraph and langchain-core that the instrumentation is tested with."""

from typing import Final

SUPPORTED: Final = {
    "langgraph": ("1.0.0", "2"),
    "langchain-core": ("1.0.0", "2"),
}
"""Distribution to the oldest release (inclusive) and the first that is not supported.

`make test-versions` runs the scenarios with the oldest of each and with the newest that is served.
The upper bounds are no gate: a newer release is traced too, with a span less for each seam it lacks
and one warning that names the seam.
"""
