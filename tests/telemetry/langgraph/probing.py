"""What a body of the application saw, beside what was recorded and what left the process.

A body calls `probe("label")`, or awaits `probe.a("label")`: the span that is current there is
noted, and a request is made to a server on loopback, which notes the `traceparent` it was sent.
`picture` then draws every span that was recorded, and refuses to where one of the three disagrees.
"""

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

STATUS = {
    "ok": "UNSET",
    "interrupted": "UNSET",
    "handoff": "UNSET",
    "abandoned_stream": "UNSET",
    "error": "ERROR",
    "timeout": "ERROR",
    "cancelled": "ERROR",
}


class Probe:
    """Notes the current span, and asks a server to note the header."""

    def __init__(self, recorded: Any, server: Any) -> None:
        self._recorded = recorded
        self._server = server
        self._seen: dict[str, tuple[str, int]] = {}
        self._client = httpx2.Client(timeout=60)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = (
            WeakKeyDictionary()
        )

    def _note(self, label: str) -> str:
        span = trace.get_current_span()
        assert label not in self._seen, "each label once"
        self._seen[label] = (getattr(span, "name", "none"), span.get_span_context().span_id)
        return f"{self._server.url}/mark/{label}"

    def __call__(self, label: str) -> str:
        """From synchronous code; returns the label."""
        self._client.get(self._note(label))
        return label

    async def a(self, label: str) -> str:
        """From asynchronous code; returns the label."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx2.AsyncClient(timeout=60)
        await self._clients[loop].get(self._note(label))
        return label

    def clear(self) -> None:
        """Forget everything so far."""
        self._seen.clear()
        self._server.headers_by_path.clear()
        self._recorded.clear()

    def picture(self) -> str:
        """Draw all spans, siblings by name; each request is drawn as `> label`.

        After a name stands what is not ordinary: `#2` for a second attempt, and in brackets the
        outcome with its error type, and `event` where the exception event is.
        """
        spans = self._recorded.spans
        by_id = {span.context.span_id: span for span in spans}
        self._check_requests(by_id)
        below: dict[int | None, list[ReadableSpan]] = {}
        for span in spans:
            parent = span.parent.span_id if span.parent else None
            assert parent is None or parent in by_id, f"the parent of {span.name} is missing"
            below.setdefault(parent, []).append(span)

        def draw(parent: int | None) -> list[list[str]]:
            trees = []
            for span in below.get(parent, []):
                inner = [f"  {line}" for tree in draw(span.context.span_id) for line in tree]
                trees.append([self._line(span), *inner])
            return sorted(trees)

        return "\n".join(line for tree in draw(None) for line in tree)

    def _check_requests(self, by_id: dict[int, ReadableSpan]) -> None:
        """The server was sent the id of an HTTP span below what was current in the body."""
        headers = self._server.headers_by_path
        assert set(headers) == set(self._seen)
        for label, (name, current) in self._seen.items():
            assert current in by_id, f"at {label} {name} was current, which is not recorded"
            _, trace_id, span_id, _ = headers[label].split("-")
            http = by_id[int(span_id, 16)]
            assert http.name == "GET"
            assert http.parent is not None
            assert http.parent.span_id == current, f"{label} left with another parent than {name}"
            assert {http.context.trace_id, by_id[current].context.trace_id} == {int(trace_id, 16)}

    def _line(self, span: ReadableSpan) -> str:
        attributes = dict(span.attributes or {})
        if span.name == "GET":
            url = attributes.get("url.full") or attributes["http.url"]  # newer and older names
            return f"> {str(url).rpartition('/')[2]}"
        if "gen_ai.operation.name" not in attributes:
            return span.name
        self._check_attributes(span, attributes)
        notes = []
        outcome = str(attributes["spanloom.outcome"])
        assert span.status.status_code.name == STATUS[outcome], span.name
        assert ("error.type" in attributes) == (STATUS[outcome] == "ERROR"), span.name
        if outcome != "ok":
            notes.append(outcome)
        if outcome == "error":
            notes.append(str(attributes["error.type"]).rpartition(".")[2])
        events = [event.name for event in span.events]
        assert events in ([], ["exception"]), f"{span.name}: {events}"
        if events:
            notes.append("event")
        attempt = attributes.get("langgraph.attempt", 1)
        return (
            span.name
            + (f" #{attempt}" if attempt != 1 else "")
            + (f" [{' '.join(notes)}]" if notes else "")
        )

    @staticmethod
    def _check_attributes(span: ReadableSpan, attributes: dict[str, Any]) -> None:
        """The name of a span is what its attributes say, and a node says where it stands."""
        operation = attributes["gen_ai.operation.name"]
        key = {
            "invoke_node": "gen_ai.node.name",
            "invoke_workflow": "gen_ai.workflow.name",
            "invoke_agent": "gen_ai.agent.name",
            "execute_tool": "gen_ai.tool.name",
            "chat": "gen_ai.request.model",
        }[operation]
        assert span.name == f"{operation} {attributes.get(key, '')}".rstrip()
        if operation == "invoke_node":
            node = attributes["gen_ai.node.name"]
            # the node of an entrypoint has no step of its own
            assert isinstance(attributes.get("langgraph.step", 1), int), span.name
            assert attributes["langgraph.attempt"] >= 1
            assert attributes["langgraph.triggers"], span.name
            last = str(attributes["langgraph.checkpoint_ns"]).rpartition("|")[2]
            assert last.partition(":")[0] == node
