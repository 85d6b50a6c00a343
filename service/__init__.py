"""The observed production agent service: API, agent, retrieval, LLM endpoint.

Of this repository it imports `spanloom.telemetry` only, as any other user's service would.
"""
