"""Language models: the providers the agent can use, and the offline one with its endpoint.

`models` builds LangChain chat models for any provider. The rest is the offline model: pure
modules that turn a chat request into a reply (`prompt`, `language`, `ranking`, `extractive`,
`arithmetic`, `moments`, `tool_choice`, `questions`, `structured`, `offline_model`) and the HTTP
endpoint around them (`wire`, `streaming`, `endpoint`, `tokenizer`).
"""
