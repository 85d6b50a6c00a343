"""Which traces match a query, newest first: block by block instead of span by span.

blocks, latest start first     best starts so far         done?
[ 09:40 … 10:02 ]              10:01  09:58  09:44        next block may hold 09:59
[ 09:21 … 09:59 ]              10:01  09:58  09:57        next ends 09:20: yes
[ 08:50 … 09:20 ]              never looked at
"""

import heapq
import json
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from spanloom import semconv
from spanloom.model import TraceQuery
from spanloom.otlp.values import INT64_MAX, clean
from spanloom.store import sql, tags
from spanloom.store.ingest import BLOCK_BITS
from spanloom.store.spans import capped, own_attributes

SharedTags: TypeAlias = Callable[[sqlite3.Connection, int, int], tuple[tags.TagPairs, ...]]
"""Tags of a resource and a scope, by their row ids."""


def last_moment(end_ns: int | None) -> int:
    """The last nanosecond before `end_ns`; without an end, the last a column can hold."""
    return INT64_MAX if end_ns is None else capped(end_ns - 1)


def matching_traces(
    connection: sqlite3.Connection, query: TraceQuery, shared_tags: SharedTags
) -> list[int]:
    """Row ids of the traces that match, at most `query.limit`, newest first."""
    if query.limit <= 0:
        return []
    matcher = tags.TagMatcher(query.tags)
    bounds = {
        "since": capped(query.start_ns or 0),
        "until": last_moment(query.end_ns),
        "min_duration": capped(query.min_duration_ns or 0),
        "max_duration": (
            INT64_MAX if query.max_duration_ns is None else capped(query.max_duration_ns)
        ),
    }
    columns = {
        **bounds,
        "service": None if query.service is None else clean(query.service),
        "operation": None if query.operation is None else clean(query.operation),
    }
    # Without tags one row per trace is enough, and no message is looked at.
    matches = (
        partial(_TagFilter(matcher, shared_tags).matches, connection)
        if query.tags
        else partial(_latest, connection)
    )
    latest: dict[int, int] = {}
    for trace, start in _open_spans(connection, query, columns, shared_tags):
        latest[trace] = max(start, latest.get(trace, start))
    for block, max_start in connection.execute(
        sql.statement("find_blocks"), {**bounds, "tags": json.dumps(_block_tags(query, matcher))}
    ):
        if len(latest) >= query.limit:
            last_wanted = heapq.nlargest(query.limit, latest.values())[-1]
            if last_wanted >= max_start:
                break
        within = {"first": block << BLOCK_BITS, "last": ((block + 1) << BLOCK_BITS) - 1}
        for trace, start in matches({**columns, **within}):
            if start > latest.get(trace, -1):
                latest[trace] = start
    ranked = sorted(latest.items(), key=lambda item: (-item[1], item[0]))
    return [trace for trace, _ in ranked[: query.limit]]


_OF_OPEN_SPANS: Final = frozenset(
    {(semconv.SPANLOOM_IN_FLIGHT, "true"), (semconv.SPANLOOM_INCOMPLETE, "true")}
)
"""Tags that every open span has."""


def _open_spans(
    connection: sqlite3.Connection,
    query: TraceQuery,
    columns: dict[str, Any],
    shared_tags: SharedTags,
) -> list[tuple[int, int]]:
    """Trace and start of matching open spans. They are in no block: they come and go."""
    wanted = {key: text for key, text in query.tags.items() if (key, text) not in _OF_OPEN_SPANS}
    if wanted:
        tag_filter = _TagFilter(tags.TagMatcher(wanted), shared_tags)
        return tag_filter.matches(connection, columns, "find_open")
    return connection.execute(sql.statement("latest_open"), columns).fetchall()


def _block_tags(query: TraceQuery, matcher: tags.TagMatcher) -> list[int]:
    wanted = list(matcher.hashes)
    if query.service is not None:
        wanted.append(tags.tag_hash(tags.SERVICE, query.service))
    if query.operation is not None:
        wanted.append(tags.tag_hash(tags.OPERATION, query.operation))
    return wanted


def _latest(connection: sqlite3.Connection, parameters: dict[str, Any]) -> list[tuple[int, int]]:
    """Each trace with a matching span in a block, and the latest start of those."""
    return connection.execute(sql.statement("latest_in_block"), parameters).fetchall()


class _TagFilter:
    """Finds the spans of a block that have the tags of one query."""

    def __init__(self, matcher: tags.TagMatcher, shared_tags: SharedTags) -> None:
        self._matcher = matcher
        self._shared_tags = shared_tags
        # Few combinations of status, kind, resource and scope recur in every block.
        self._remaining: dict[tuple[int, int, int, int], tuple[tags.Wanted, ...]] = {}

    def matches(
        self,
        connection: sqlite3.Connection,
        parameters: dict[str, Any],
        statement: str = "find_in_block",
    ) -> list[tuple[int, int]]:
        """Trace and start of each matching span that a statement finds."""
        found = []
        for trace, start, status, kind, resource, scope, details in connection.execute(
            sql.statement(statement), parameters
        ).fetchall():
            shared = (status, kind, resource, scope)
            wanted = self._remaining.get(shared)
            if wanted is None:
                wanted = self._remaining[shared] = self._matcher.remaining(
                    status=status,
                    kind=kind,
                    shared=self._shared_tags(connection, resource, scope),
                )
            if not wanted or (
                all(tag.may_be_in(details) for tag in wanted) and _has(details, wanted)
            ):
                found.append((trace, start))
        return found


def _has(details: bytes, wanted: tuple[tags.Wanted, ...]) -> bool:
    have = {pair for attributes in own_attributes(details) for pair in tags.pairs(attributes)}
    return all((tag.key, tag.text) in have for tag in wanted)
