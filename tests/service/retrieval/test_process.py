"""The real process over loopback."""

import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.service.retrieval.running import RetrievalProcess, index
from tests.telemetry.live import Receiver, attributes, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("retrieval")]

Library = Callable[..., Path]
Start = Callable[..., RetrievalProcess]

SERVER, INTERNAL, CLIENT = 2, 1, 3


def traceparent(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{'1' * 16}-01"}


def test_health_says_what_is_served(retrieval: RetrievalProcess) -> None:
    """State, version, uptime, and how much is indexed."""
    health = retrieval.http.get("/health").json()

    assert health["status"] == "ok"
    assert health["documents"] >= 44
    assert health["passages"] >= health["documents"]
    assert health["uptime_seconds"] >= 0
    assert health["version"]


@pytest.mark.parametrize(
    ("query", "document_id", "language"),
    [
        (
            "How does iteration-level scheduling let waiting requests join?",
            "continuous-batching",
            "en",
        ),
        ("用户问“那第二种呢”搜不到东西", "query-rewriting", "zh"),
    ],
)
def test_a_search_answers_with_whole_hits(
    retrieval: RetrievalProcess, query: str, document_id: str, language: str
) -> None:
    """Each hit has all that a caller needs to quote it."""
    hits = retrieval.search(query, 3)

    assert len(hits) == 3
    assert (hits[0]["document_id"], hits[0]["language"]) == (document_id, language)
    assert set(hits[0]) == {"passage_id", "document_id", "title", "text", "language", "score"}
    assert hits[0]["passage_id"].startswith(f"{document_id}#")


def test_hits_can_be_reranked(retrieval: RetrievalProcess) -> None:
    """The answer of one endpoint is the request of the other."""
    hits = retrieval.search("怎样防止重试压垮对方", 6)

    answer = retrieval.http.post(
        "/rerank", json={"query": "重试预算", "passages": hits, "top_k": 2}
    ).json()["passages"]

    assert len(answer) == 2
    assert answer[0]["passage_id"].startswith("retries-and-backoff#")
    assert answer[0]["score"] >= answer[1]["score"]


def test_a_document_comes_with_its_references(retrieval: RetrievalProcess) -> None:
    """Every reference of a document is a document."""
    document = retrieval.http.get("/documents/kv-cache").json()

    assert (document["document_id"], document["language"]) == ("kv-cache", "en")
    assert "2 × layers" in document["text"]
    for reference in document["references"]:
        assert retrieval.http.get(f"/documents/{reference}").status_code == 200


@pytest.mark.parametrize("document_id", ["nope", "没有", "..%2F..%2Fetc%2Fpasswd", "%00"])
def test_an_unknown_document_is_404(retrieval: RetrievalProcess, document_id: str) -> None:
    """With a sentence as detail."""
    answer = retrieval.http.get(f"/documents/{document_id}")

    assert answer.status_code == 404
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/search", b"{}"),
        ("/search", b"not json"),
        ("/search", b""),
        ("/search", b"[1]"),
        ("/search", b'{"query": ""}'),
        ("/search", b'{"query": "   "}'),
        ("/search", b'{"query": 5}'),
        ("/search", b'{"query": "\\ud800"}'),
        ("/search", b'{"query": "\xff"}'),
        ("/search", json.dumps({"query": "x" * 4001}).encode()),
        ("/search", b'{"query": "x", "top_k": 0}'),
        ("/search", b'{"query": "x", "top_k": 51}'),
        ("/search", b'{"query": "x", "top_k": NaN}'),
        ("/rerank", b'{"query": "x"}'),
        ("/rerank", b'{"query": "x", "passages": [{"passage_id": "a"}]}'),
        (
            "/rerank",
            json.dumps(
                {"query": "x", "passages": [{"passage_id": "a", "text": ""}] * 501}
            ).encode(),
        ),
    ],
)
def test_bad_input_is_422_with_a_trace_id(
    retrieval: RetrievalProcess, path: str, body: bytes
) -> None:
    """Whatever is wrong with the body, the answer is JSON, names no input, and has the id."""
    answer = retrieval.http.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]
    assert len(answer.headers["x-trace-id"]) == 32
    assert len(answer.content) < 2000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(retrieval: RetrievalProcess, chunked: bool) -> None:
    """By its declared length or as it arrives."""
    body = b'{"query": "' + b"x" * 3_000_000 + b'"}'
    content = iter([body[:1_500_000], body[1_500_000:]]) if chunked else body

    answer = retrieval.http.post(
        "/search", content=content, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 413
    assert len(answer.headers["x-trace-id"]) == 32


def test_a_refused_body_leaves_nothing_to_the_next_request(retrieval: RetrievalProcess) -> None:
    """On the same connection, the request after a 413 belongs to its own caller's trace."""
    trace_id = secrets.token_hex(16)
    headers = {"content-type": "application/json"}
    refused = retrieval.http.post("/search", content=b"x" * 3_000_000, headers=headers)

    answer = retrieval.http.post("/search", json={"query": "缓存"}, headers=traceparent(trace_id))

    assert refused.status_code == 413
    assert answer.headers["x-trace-id"] == trace_id


def test_the_callers_trace_is_continued(retrieval: RetrievalProcess, receiver: Receiver) -> None:
    """SERVER under the caller's span, `retrieval articles` under that; rerank alike."""
    for path, name, extra in (
        ("/search", "retrieval articles", {}),
        ("/rerank", "rerank articles", {"passages": [{"passage_id": "a", "text": "缓存"}]}),
    ):
        trace_id = secrets.token_hex(16)

        answer = retrieval.http.post(
            path, json={"query": "缓存", "top_k": 4, **extra}, headers=traceparent(trace_id)
        )
        spans = wait_for(lambda found=trace_id: _both(receiver, found))

        assert answer.headers["x-trace-id"] == trace_id
        server, inner = spans
        assert (server.kind, server.parent_span_id.hex()) == (SERVER, "1" * 16)
        assert server.name == f"POST {path}"
        assert inner.name == name
        assert inner.parent_span_id == server.span_id
        told = attributes(inner)
        assert told["gen_ai.data_source.id"] == "articles"
        assert told["spanloom.result.count"] == len(
            next(iter(value for value in answer.json().values() if isinstance(value, list)))
        )
        assert not any("缓存" in str(value) for value in told.values())


def _both(receiver: Receiver, trace_id: str) -> list[Any] | None:
    spans = sorted(receiver.spans_of(trace_id), key=lambda span: span.kind != SERVER)
    return spans if len(spans) >= 2 else None


def test_the_log_line_stands_beside_its_span(
    retrieval: RetrievalProcess, receiver: Receiver
) -> None:
    """One line a search, with the trace id and the length of the query, never the query."""
    trace_id = secrets.token_hex(16)
    retrieval.search("隐私问题 secret-word", **traceparent(trace_id))

    line = wait_for(
        lambda: next(
            (
                line
                for line in retrieval.lines()
                if line.get("trace_id") == trace_id and line["event"] == "retrieval_search"
            ),
            None,
        )
    )

    assert line["query_len"] == len("隐私问题 secret-word")
    assert "secret" not in json.dumps(retrieval.lines(), ensure_ascii=False)
    assert wait_for(lambda: [r for r in list(receiver.logs) if r.trace_id.hex() == trace_id])


def test_concurrent_searches_do_not_mix(retrieval: RetrievalProcess, receiver: Receiver) -> None:
    """Twenty at once: each gets its own hits, its own trace, and two spans in it."""
    queries = ["KV cache size", "断路器 熔断 半开", "exemplar buckets", "混合专家 负载不均"] * 5
    alone = {query: retrieval.search(query) for query in set(queries)}
    ids = [secrets.token_hex(16) for _ in queries]

    with ThreadPoolExecutor(20) as pool:
        together = list(
            pool.map(
                lambda pair: retrieval.search(pair[0], **traceparent(pair[1])),
                zip(queries, ids, strict=True),
            )
        )

    assert together == [alone[query] for query in queries]
    for trace_id in ids:
        server, inner = wait_for(lambda found=trace_id: _both(receiver, found))
        assert inner.parent_span_id == server.span_id
        assert len(receiver.spans_of(trace_id)) == 2


def test_the_users_files_are_indexed_and_served(
    tmp_path: Path, library: Library, start: Start
) -> None:
    """`index PATH` reports what it took and left; `serve` finds it; a new index is picked up."""
    root = library(
        guide_md="# Zorblax\n\nThe zorblax valve opens at 42 kPa. See [[协议]].",
        协议_txt="\ufeff青鸾协议规定每周三上午更换密钥。".encode(),
        old_txt="旧文件用的是国标编码，需要转换之后才能使用".encode("gb18030"),
        empty_md="",
    )

    done = index(tmp_path, str(root))

    assert done.returncode == 0, done.stderr
    assert "skipped empty.md: it is empty" in done.stdout
    assert "skipped old.txt: it is not UTF-8" in done.stdout
    assert "Indexed 2 documents in 2 passages, skipped 2 files" in done.stdout

    process = start()
    assert process.search("zorblax pressure")[0]["document_id"] == "guide"
    assert process.search("什么时候更换密钥")[0]["document_id"] == "协议"
    assert process.http.get("/documents/guide").json()["references"] == ["协议"]
    assert process.http.get("/documents/协议").json()["text"].startswith("青鸾")

    library(new_md="The quimble rotates clockwise.")
    assert index(tmp_path, str(root)).returncode == 0
    assert wait_for(lambda: any(hit["document_id"] == "new" for hit in process.search("quimble")))


def test_the_index_can_be_elsewhere(tmp_path: Path, library: Library, start: Start) -> None:
    """--out and the usual VECTOR_STORE_PATH name the same place."""
    elsewhere = tmp_path / "else where"
    root = library(a_md="The zorblax valve.")

    assert index(tmp_path, str(root), "--out", str(elsewhere)).returncode == 0
    process = start(VECTOR_STORE_PATH=str(elsewhere))

    assert process.http.get("/health").json()["index"] == root.name
    assert process.http.get("/health").json()["documents"] == 1


def test_indexing_nothing_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    """A wrong path or an empty folder changes nothing and says so."""
    for path in ("missing", str(tmp_path)):
        done = index(tmp_path, path)

        assert done.returncode == 1
        assert done.stderr.startswith("Nothing was indexed: ")
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "index").exists()


def test_a_stale_index_is_built_again_at_start(
    tmp_path: Path, library: Library, start: Start
) -> None:
    """Files that changed while nothing ran are found by the next process."""
    root = library(a_md="The zorblax valve.")
    start(AGENT_CORPUS_PATH=str(root)).stop()
    library(b_md="The quimble rotates.")

    process = start(AGENT_CORPUS_PATH=str(root))

    assert process.search("quimble")[0]["document_id"] == "b"


def test_it_ends_when_told(start: Start) -> None:
    """SIGTERM is the ordinary end."""
    assert start().stop() in {0, -15}


def test_a_taken_port_is_said_in_one_line(tmp_path: Path, retrieval: RetrievalProcess) -> None:
    """The message says which and what to do, without a traceback."""
    import subprocess  # noqa: PLC0415

    from tests.service.retrieval.running import MODULE, environment  # noqa: PLC0415

    port = retrieval.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [*MODULE, "serve", "--port", port],
        cwd=tmp_path,
        env=environment(tmp_path, OTEL_SDK_DISABLED="true"),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1" in done.stderr
    assert "AGENT_RETRIEVAL_PORT" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
