"""The LangGraph agent: route ▸ retrieve ▸ rerank ▸ tools ▸ generate ▸ reflect."""
