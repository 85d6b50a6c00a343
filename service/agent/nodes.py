"""The six nodes. Each reads the state, does one thing, and returns what changed."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.tools import BaseTool
from langgraph.runtime import Runtime
from opentelemetry import trace

from service.agent.prompts import (
    REFLECT_SCHEMA,
    ROUTE_SCHEMA,
    generate_prompt,
    reflect_prompt,
    route_prompt,
    tools_prompt,
)
from service.agent.queries import plan_queries
from service.agent.state import (
    DIFFICULTIES,
    AgentState,
    Difficulty,
    Message,
    RunContext,
    SearchInput,
    ToolResult,
)
from service.agent.structured import StructuredModel
from service.agent.tools import build_tools, run_tools
from service.retrieval_client import Passage, RetrievalClient
from service.settings import Settings

_CITATION: Final = re.compile(r"[\[【](\d{1,2})[\]】]")
_LOOKUP: Final = "lookup_document"
_DIFFICULTY_ATTRIBUTE: Final = "agent.difficulty"


@dataclass(frozen=True, slots=True)
class Token:
    """Stream event: a piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Redraft:
    """Stream event: the pieces so far belong to a draft that is void; start over."""

    round: int


class Nodes:
    """The nodes over their models, retrieval and settings."""

    def __init__(
        self,
        *,
        large: BaseChatModel,
        small: BaseChatModel,
        retrieval: RetrievalClient,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._retrieval = retrieval
        self._writers: dict[Difficulty, BaseChatModel] = {
            "simple": small,
            "moderate": large,
            "hard": large,
        }
        tools = build_tools(retrieval)
        self._tools: dict[str, BaseTool] = {tool.name: tool for tool in tools}
        self._tool_callers = {
            difficulty: model.bind_tools(tools) for difficulty, model in self._writers.items()
        }
        self._router = StructuredModel.bind(small, ROUTE_SCHEMA, provider=settings.provider)
        self._critic = StructuredModel.bind(small, REFLECT_SCHEMA, provider=settings.provider)

    async def route(self, state: AgentState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        """A cheap call judges the difficulty and proposes searches."""
        question, earlier = state["question"], state.get("messages", [])
        count = self._settings.sub_queries
        reply = await self._router.ask(
            route_prompt(question, earlier, count=count), runtime.context.usage
        )
        difficulty = _difficulty(reply.get("difficulty"))
        trace.get_current_span().set_attribute(_DIFFICULTY_ATTRIBUTE, difficulty)
        proposed = reply.get("sub_queries")
        # Only a question with turns before it can lean on them: the first is taken as asked.
        standalone = str(reply.get("standalone_question") or "").strip() if earlier else ""
        asked = [message["content"] for message in earlier if message["role"] == "user"]
        return {
            "difficulty": difficulty,
            "standalone": standalone or question,
            "sub_queries": plan_queries(
                question,
                [str(query) for query in proposed] if isinstance(proposed, list) else [],
                previous=asked[-1] if asked else None,
                count=count,
            ),
        }

    async def retrieve(self, state: SearchInput) -> dict[str, Any]:
        """One search of the fan-out."""
        hits = await self._retrieval.search(state["query"], top_k=self._settings.retrieve_top_k)
        return {"found": hits}

    async def rerank(self, state: AgentState) -> dict[str, Any]:
        """The union of all searches, ordered by how well each passage answers the question."""
        union = list({hit["passage_id"]: hit for hit in state["found"]}.values())
        if not union:
            return {"passages": []}
        passages = await self._retrieval.rerank(
            state["standalone"], union, top_k=self._settings.rerank_top_k
        )
        return {"passages": passages}

    async def tools(self, state: AgentState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        """The model calls tools until it has what it needs, a bounded number of rounds."""
        messages: list[BaseMessage] = tools_prompt(state["standalone"], state["passages"])
        results: list[ToolResult] = []
        made: set[str] = set()
        model = self._tool_callers[state["difficulty"]]
        for _ in range(self._settings.max_tool_rounds):
            reply = await model.ainvoke(messages)
            assert isinstance(reply, AIMessage)
            runtime.context.usage.add(reply)
            wanted = {_fingerprint(call) for call in reply.tool_calls}
            # A model that only repeats itself has nothing left to learn.
            if wanted <= made:
                break
            made |= wanted
            messages.append(reply)
            for message, result in await run_tools(self._tools, reply.tool_calls):
                messages.append(message)
                results.append(result)
        return {"tool_results": results}

    async def generate(self, state: AgentState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        """Write the answer, piece by piece to whoever listens."""
        drafts = state["reflections"] + _earlier_attempts(runtime)
        if drafts:
            runtime.stream_writer(Redraft(drafts))
        model = self._writers[state["difficulty"]]
        prompt = generate_prompt(
            state["question"],
            state.get("messages", []),
            state["passages"],
            state["tool_results"],
            rejected=state["answer"] if state["reflections"] else "",
            missing=state["missing"],
        )
        whole: AIMessageChunk | None = None
        async for chunk in model.astream(prompt):
            assert isinstance(chunk, AIMessageChunk)
            whole = chunk if whole is None else whole + chunk
            if text := str(chunk.text):
                runtime.stream_writer(Token(text))
        answer = ""
        if whole is not None:
            runtime.context.usage.add(whole)
            answer = str(whole.text).strip()
        update = {
            "answer": answer,
            "sources": _sources(answer, state["passages"], state["tool_results"]),
        }
        if self.may_reflect(state):
            return update
        return {**update, "messages": _turn(state["question"], answer)}

    async def reflect(self, state: AgentState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        """Check the answer against its material; an accepted one ends the turn."""
        verdict = await self._critic.ask(
            reflect_prompt(
                state["standalone"], state["passages"], state["tool_results"], state["answer"]
            ),
            runtime.context.usage,
        )
        # Only a clear "no" costs another round: an unparsed verdict accepts.
        if verdict.get("grounded") is False or verdict.get("complete") is False:
            return {
                "missing": str(verdict.get("missing") or "what the question asks for"),
                "reflections": state["reflections"] + 1,
            }
        return {"missing": "", "messages": _turn(state["question"], state["answer"])}

    def may_reflect(self, state: AgentState) -> bool:
        """Whether a verdict could still change anything."""
        return state["reflections"] < self._settings.max_reflections


def _earlier_attempts(runtime: Runtime[RunContext]) -> int:
    """How often this step has failed and was tried again."""
    info = runtime.execution_info
    return 0 if info is None else info.node_attempt - 1


def _difficulty(value: object) -> Difficulty:
    for difficulty in DIFFICULTIES:
        if value == difficulty:
            return difficulty
    return "moderate"


def _fingerprint(call: Any) -> str:
    return json.dumps([call["name"], call["args"]], sort_keys=True, default=str)


def _turn(question: str, answer: str) -> list[Message]:
    return [
        Message(role="user", content=question),
        Message(role="assistant", content=answer),
    ]


def _sources(answer: str, passages: list[Passage], tool_results: list[ToolResult]) -> list[str]:
    """Ids of the documents the answer stands on, each once.

    Those it cites by number: an answer that cites none (nothing was found, or a tool told all)
    stands on none. Documents a tool read whole are always among them.
    """
    cited = {int(number) for number in _CITATION.findall(answer)}
    ids = [
        passage["document_id"]
        for number, passage in enumerate(passages, start=1)
        if number in cited
    ]
    ids += [
        str(result["arguments"].get("document_id"))
        for result in tool_results
        if result["name"] == _LOOKUP and not result["failed"]
    ]
    return list(dict.fromkeys(ids))
