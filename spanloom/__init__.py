"""OpenTelemetry-first distributed tracing for LLM agents.

`spanloom.telemetry` is what an observed service imports. Everything else is the
backend and its tools; `docs/architecture.md` draws how the parts fit.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("spanloom")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
