"""The parts of `bench/tracing_overhead.py`."""
