"""The retrieval process, seen from the agent: search, rerank, documents, over HTTP."""

from types import TracebackType
from typing import Any, Self, TypedDict
from urllib.parse import quote

import httpx2

from service.errors import DependencyUnavailableError, ToolError

_MAX_CONNECTIONS = 64
_NOT_FOUND = 404


class Passage(TypedDict):
    """One piece of a document, as search returns it."""

    passage_id: str
    document_id: str
    title: str
    text: str
    score: float


class Document(TypedDict):
    """A whole document and the ids of the documents it refers to."""

    document_id: str
    title: str
    text: str
    references: list[str]


class RetrievalClient:
    """Async client of `service.retrieval`; use as a context manager.

    Every method raises DependencyUnavailableError when the process is down, too slow, or
    answers 429 or 5xx.
    """

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            timeout=timeout_s,
            limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS),
            # Retrieval is our own process: a proxy from the environment is never its way.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def search(self, query: str, *, top_k: int) -> list[Passage]:
        """The `top_k` best passages for `query`, best first."""
        body = await self._call("POST", "/search", {"query": query, "top_k": top_k})
        return [
            Passage(
                passage_id=str(hit["passage_id"]),
                document_id=str(hit["document_id"]),
                title=str(hit["title"]),
                text=str(hit["text"]),
                score=float(hit["score"]),
            )
            for hit in body["hits"]
        ]

    async def rerank(self, query: str, passages: list[Passage], *, top_k: int) -> list[Passage]:
        """The `top_k` of `passages` that answer `query` best, with their new scores."""
        body = await self._call(
            "POST",
            "/rerank",
            {
                "query": query,
                "passages": [
                    {"passage_id": passage["passage_id"], "text": passage["text"]}
                    for passage in passages
                ],
                "top_k": top_k,
            },
        )
        by_id = {passage["passage_id"]: passage for passage in passages}
        return [
            Passage(**{**by_id[ranked["passage_id"]], "score": float(ranked["score"])})
            for ranked in body["passages"]
            if ranked["passage_id"] in by_id
        ]

    async def document(self, document_id: str) -> Document:
        """One document by id; ToolError when there is none."""
        body = await self._call(
            "GET",
            f"/documents/{quote(document_id, safe='')}",
            missing=f"there is no document {document_id!r}",
        )
        return Document(
            document_id=str(body["document_id"]),
            title=str(body["title"]),
            text=str(body["text"]),
            references=[str(reference) for reference in body.get("references", [])],
        )

    async def check(self, *, timeout_s: float) -> None:
        """Return if the process says it is healthy."""
        await self._call("GET", "/health", timeout_s=timeout_s)

    async def _call(
        self,
        method: str,
        path: str,
        json: dict[str, Any] | None = None,
        *,
        missing: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        timeout = httpx2.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            response = await self._http.request(method, path, json=json, timeout=timeout)
        except httpx2.TransportError as exc:
            raise DependencyUnavailableError.by_transport("retrieval", exc) from exc
        outage = DependencyUnavailableError.by_status("retrieval", response.status_code)
        if outage is not None:
            raise outage
        if response.status_code == _NOT_FOUND and missing is not None:
            raise ToolError(missing)
        response.raise_for_status()
        return response.json()
