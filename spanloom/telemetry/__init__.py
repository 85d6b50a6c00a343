"""Telemetry for LLM agents: one call sets up traces, logs and metrics."""
