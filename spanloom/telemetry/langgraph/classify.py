"""Decisions about what LangGraph and LangChain hand us: pure, no tracer, no import of either.

Which span a graph run is (`graph_kind`):

1. the graph carries create_agent's mark in its own metadata → `invoke_agent {its name}`
2. its model node is that of create_react_agent, or of a
   create_agent from before there was a mark                  → `invoke_agent {name}`
3. every other compiled graph or @entrypoint                 → `invoke_workflow {name}`

Which task is a node span (`is_visible_node`): each one LangGraph does not tag as hidden.
Branches and channel writes are no tasks, so they never come here.
"""

import functools
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from spanloom import semconv

HIDDEN_TAG: Final = "langsmith:hidden"
"""`langgraph.constants.TAG_HIDDEN`: `__start__` and the like."""
_UNNAMED: Final = "LangGraph"
_CREATE_AGENT_MARK: Final = "langchain_create_agent"
_AGENT_MODULES: Final = {
    # name of the model node → module of its function
    "agent": "langgraph.prebuilt.chat_agent_executor",
    "model": "langchain.agents.factory",
}

_PROVIDERS: Final = {
    # LangChain's `ls_provider` → well-known value of gen_ai.provider.name, where they differ
    "amazon_bedrock": "aws.bedrock",
    "anthropic_bedrock": "aws.bedrock",
    "aws_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "google_anthropic_vertex": "gcp.vertex_ai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "ibm": "ibm.watsonx.ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "moonshot": "moonshot_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_PACKAGE_PROVIDERS: Final = {
    # for model classes that do not say it themselves
    "langchain_anthropic": "anthropic",
    "langchain_aws": "aws.bedrock",
    "langchain_cohere": "cohere",
    "langchain_deepseek": "deepseek",
    "langchain_google_genai": "gcp.gemini",
    "langchain_google_vertexai": "gcp.vertex_ai",
    "langchain_groq": "groq",
    "langchain_ibm": "ibm.watsonx.ai",
    "langchain_mistralai": "mistral_ai",
    "langchain_ollama": "ollama",
    "langchain_openai": "openai",
    "langchain_perplexity": "perplexity",
    "langchain_xai": "x_ai",
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def graph_kind(metadata: Mapping[str, Any] | None, nodes: Mapping[str, Any], name: str) -> str:
    """Say which operation a graph run is: `OP_INVOKE_AGENT` or `OP_INVOKE_WORKFLOW`.

    `metadata` is the graph's own (a caller's is inherited by every sub-graph and says nothing).
    """
    if metadata and metadata.get("ls_integration") == _CREATE_AGENT_MARK:
        return semconv.OP_INVOKE_AGENT
    for node, module in _AGENT_MODULES.items():
        if name and node in nodes:
            bound = getattr(nodes[node], "bound", None)
            function = getattr(bound, "func", None) or getattr(bound, "afunc", None)
            if getattr(function, "__module__", None) == module:
                return semconv.OP_INVOKE_AGENT
    return semconv.OP_INVOKE_WORKFLOW


def graph_name(metadata: Mapping[str, Any] | None, nodes: Mapping[str, Any], name: str) -> str:
    """The name a graph was given.

    LangGraph calls all others `LangGraph`, an `@entrypoint` too: that one is known by its
    function, which is its only node (a StateGraph has `__start__` as well).
    """
    agent_name = metadata.get("lc_agent_name") if metadata else None
    if isinstance(agent_name, str) and agent_name:
        return agent_name
    if name == _UNNAMED and len(nodes) == 1:
        return next(iter(nodes))
    return name


def is_visible_node(tags: Any) -> bool:
    """Whether a task is a node of the application; `tags` are those of its config."""
    return not tags or HIDDEN_TAG not in tags


def conversation_id(*configurables: Mapping[str, Any] | None) -> str | None:
    """The thread id from the first configurable that has one; never an invented one."""
    for configurable in configurables:
        if configurable:
            thread_id = configurable.get("thread_id")
            if thread_id is not None and thread_id != "":
                return str(thread_id)
    return None


def provider_name(ls_provider: object, *, says_itself: bool, module: str) -> str | None:
    """The value of gen_ai.provider.name, or None rather than a guess.

    `says_itself`: the model class reports `ls_provider` by its own code. LangChain's fallback
    cuts it out of the class name, which is no provider ("fakelistchatmodel").
    """
    if says_itself and isinstance(ls_provider, str) and ls_provider:
        return _PROVIDERS.get(ls_provider, ls_provider)
    return _PACKAGE_PROVIDERS.get(module.partition(".")[0])


@functools.lru_cache(maxsize=256)
def server_of(url: str) -> tuple[str | None, int | None]:
    """Host and port of a client's base URL; nothing where there is none."""
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            return None, None
        return parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:  # a port that is no number
        return None, None


def is_tool_error(result: object) -> bool:
    """Whether a tool reports failure in its result: a ToolMessage with status "error"."""
    return getattr(result, "status", None) == "error" and getattr(result, "type", None) == "tool"
