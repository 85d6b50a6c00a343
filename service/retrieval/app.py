"""The retrieval process's HTTP API: search, rerank, documents.

Handlers are plain functions: a search is a few milliseconds of computing, which FastAPI runs in
its thread pool, so that one search over a large index does not hold the event loop.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, StringConstraints

from service import VERSION
from service.middleware import BodyLimitMiddleware, ErrorMiddleware, IdentityMiddleware
from service.retrieval import rerank as reranking
from service.retrieval.index import Hit
from service.retrieval.live import LiveIndex
from spanloom.telemetry import Telemetry, get_logger, rerank, retrieval

MAX_BODY_BYTES = 2 * 1024 * 1024
"""A rerank request carries its passages: hundreds of them, three bytes to a Han character."""
RETRY_AFTER_S = 1

Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]

_log = get_logger(__name__)


class SearchRequest(BaseModel):
    """What to look for."""

    query: Query
    top_k: int = Field(6, ge=1, le=50)


class SearchHit(BaseModel):
    """A passage that was found; scores order the hits of one answer and nothing else."""

    passage_id: str
    document_id: str
    title: str
    text: str
    language: str
    score: float


class SearchAnswer(BaseModel):
    """Hits, best first."""

    index: str
    hits: list[SearchHit]


class RerankPassage(BaseModel):
    """A passage to score; an id from `/search` lets its title count."""

    passage_id: str = Field(min_length=1, max_length=500)
    text: str = Field(max_length=50_000)


class RerankRequest(BaseModel):
    """Which of these passages answer the query best."""

    query: Query
    passages: list[RerankPassage] = Field(max_length=500)
    top_k: int = Field(4, ge=1, le=500)


class ScoredPassage(BaseModel):
    """A passage's score, 0 to 1, comparable across requests to one index."""

    passage_id: str
    score: float


class RerankAnswer(BaseModel):
    """Passages, best first."""

    passages: list[ScoredPassage]


class DocumentAnswer(BaseModel):
    """A whole article and what it refers to."""

    document_id: str
    title: str
    language: str
    text: str
    references: Sequence[str]


class HealthAnswer(BaseModel):
    """How the process is and what it serves."""

    status: str
    version: str
    uptime_seconds: float
    index: str
    documents: int
    passages: int


def create_app(live: LiveIndex, telemetry: Telemetry) -> FastAPI:
    """The application over an index that is already there."""
    started = time.monotonic()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        telemetry.shutdown()

    app = FastAPI(title="Spanloom retrieval", version=VERSION, lifespan=lifespan)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=MAX_BODY_BYTES)
    app.add_middleware(ErrorMiddleware, retry_after_s=RETRY_AFTER_S)
    app.add_middleware(IdentityMiddleware)
    app.add_exception_handler(RequestValidationError, _answer_invalid)

    @app.get("/health")
    def health() -> HealthAnswer:
        index = live.current()
        return HealthAnswer(
            status="ok",
            version=app.version,
            uptime_seconds=round(time.monotonic() - started, 3),
            index=index.info.name,
            documents=len(index.documents),
            passages=len(index.passages),
        )

    @app.post("/search")
    def search(request: SearchRequest) -> SearchAnswer:
        index = live.current()
        with retrieval(index.info.name, top_k=request.top_k) as span:
            hits = index.search(request.query, request.top_k)
            span.results(len(hits))
            span.query(request.query)
            span.documents((hit.passage.passage_id, hit.score) for hit in hits)
            _log.info(
                "retrieval_search",
                index=index.info.name,
                query_len=len(request.query),
                top_k=request.top_k,
                hits=len(hits),
            )
        return SearchAnswer(index=index.info.name, hits=[_search_hit(hit) for hit in hits])

    @app.post("/rerank")
    def rerank_passages(request: RerankRequest) -> RerankAnswer:
        index = live.current()
        with rerank(index.info.name, model=reranking.MODEL, top_k=request.top_k) as span:
            ranked = index.reranker.rank(
                request.query, ((passage.passage_id, passage.text) for passage in request.passages)
            )[: request.top_k]
            span.results(len(ranked))
            _log.info(
                "retrieval_rerank",
                index=index.info.name,
                query_len=len(request.query),
                passages=len(request.passages),
                top_k=request.top_k,
            )
        return RerankAnswer(
            passages=[
                ScoredPassage(
                    passage_id=request.passages[item.position].passage_id, score=item.score
                )
                for item in ranked
            ]
        )

    @app.get("/documents/{document_id}")
    def document(document_id: str) -> DocumentAnswer:
        found = live.current().documents.get(document_id)
        if found is None:
            raise HTTPException(404, f"No document has the id {document_id[:200]!r}.")
        return DocumentAnswer(
            document_id=found.document_id,
            title=found.title,
            language=found.language,
            text=found.text,
            references=found.references,
        )

    telemetry.instrument_fastapi(app)
    return app


def _search_hit(hit: Hit) -> SearchHit:
    passage = hit.passage
    return SearchHit(
        passage_id=passage.passage_id,
        document_id=passage.document_id,
        title=passage.title,
        text=passage.text,
        language=passage.language,
        score=round(hit.score, 6),
    )


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """422 without the input: it may be large, and a lone surrogate in it cannot be encoded."""
    assert isinstance(error, RequestValidationError)
    detail = [
        {"type": item["type"], "loc": list(item["loc"]), "msg": item["msg"]}
        for item in error.errors()
    ]
    return JSONResponse({"detail": detail}, status_code=422)
