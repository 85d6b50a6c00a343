"""Row ids of what many rows share: services, resources, scopes, operations, metrics."""

import sqlite3
from hashlib import blake2b
from typing import Final, NamedTuple

from spanloom.model import MetricPoint, Resource, Scope
from spanloom.otlp.encode import resource_key, scope_key
from spanloom.otlp.metrics import metric_key
from spanloom.otlp.values import clean
from spanloom.store import tags
from spanloom.store.references import References

_MAX_CACHED: Final = 20_000
"""Entries per cache; beyond that it starts afresh, which costs one lookup per entry."""


class InternedResource(NamedTuple):
    """A stored resource."""

    id: int
    service: int
    hashes: frozenset[int]
    """Tags that every span of the resource has."""


class InternedScope(NamedTuple):
    """A stored scope."""

    id: int
    hashes: frozenset[int]


class InternedOperation(NamedTuple):
    """A stored span name."""

    id: int
    hash: int
    """The tag that every span of this name has."""


def digest(*parts: bytes, size: int = 16) -> bytes:
    """A fingerprint of bytes, for finding equal rows."""
    state = blake2b(digest_size=size)
    for part in parts:
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


class Interning:
    """Finds or inserts shared rows, inside the writer's transaction."""

    def __init__(self, connection: sqlite3.Connection, references: References) -> None:
        self._connection = connection
        self._references = references
        self._services: dict[str, int] = {}
        self._resources: dict[bytes, InternedResource] = {}
        self._scopes: dict[bytes, InternedScope] = {}
        self._operations: dict[tuple[int, str, int], InternedOperation] = {}
        self._metrics: dict[bytes, int] = {}
        # Decoded items share their resource and scope objects, so within a batch, which keeps
        # them alive, the object's identity finds the row without encoding it again.
        self._by_identity: dict[int, InternedResource | InternedScope] = {}

    def start_batch(self) -> None:
        """Forget object identities, which are only unique within a batch."""
        self._by_identity.clear()
        for cache in (self._services, self._resources, self._scopes, self._operations):
            if len(cache) > _MAX_CACHED:
                cache.clear()
        if len(self._metrics) > _MAX_CACHED:
            self._metrics.clear()

    def forget(self) -> None:
        """Drop every cached id: after a rollback or a deletion it may name nothing."""
        for cache in (self._services, self._resources, self._scopes, self._operations):
            cache.clear()
        self._metrics.clear()
        self._by_identity.clear()

    def resource(self, resource: Resource) -> InternedResource:
        """The row of a resource."""
        known = self._by_identity.get(id(resource))
        if isinstance(known, InternedResource):
            return known
        message = resource_key(resource)
        found = self._resources.get(message)
        if found is None:
            service = self._service(clean(resource.service_name))
            found = InternedResource(
                self._row(
                    "SELECT id FROM resources WHERE digest = ?",
                    "INSERT INTO resources (digest, service, message) VALUES (?, ?, ?)",
                    (digest(message), service, message),
                ),
                service,
                frozenset(tags.attribute_hashes(resource.attributes))
                | {tags.tag_hash(tags.SERVICE, clean(resource.service_name))},
            )
            self._resources[message] = found
        self._by_identity[id(resource)] = found
        return found

    def scope(self, scope: Scope) -> InternedScope:
        """The row of a scope."""
        known = self._by_identity.get(id(scope))
        if isinstance(known, InternedScope):
            return known
        message = scope_key(scope)
        found = self._scopes.get(message)
        if found is None:
            found = InternedScope(
                self._row(
                    "SELECT id FROM scopes WHERE digest = ?",
                    "INSERT INTO scopes (digest, message) VALUES (?, ?)",
                    (digest(message), message),
                ),
                frozenset(tags.attribute_hashes(scope.attributes)),
            )
            self._scopes[message] = found
        self._by_identity[id(scope)] = found
        return found

    def operation(self, service: int, name: str, kind: int) -> InternedOperation:
        """The row of a span name."""
        key = (service, name, kind)
        found = self._operations.get(key)
        if found is None:
            found = self._operations[key] = InternedOperation(
                self._row(
                    "SELECT id FROM operations WHERE service = ? AND name = ? AND kind = ?",
                    "INSERT INTO operations (service, name, kind, span_count) VALUES (?, ?, ?, 0)",
                    key,
                    looked_up_by=3,
                ),
                tags.tag_hash(tags.OPERATION, name),
            )
        return found

    def metric(self, point: MetricPoint) -> int:
        """The row of what the points of a metric share."""
        resource, scope = self.resource(point.resource), self.scope(point.scope)
        message = metric_key(point)
        key = digest(resource.id.to_bytes(8, "little"), scope.id.to_bytes(8, "little"), message)
        found = self._metrics.get(key)
        if found is None:
            found = self._select("SELECT id FROM metrics WHERE digest = ?", (key,))
            if found is None:
                found = self._insert(
                    "INSERT INTO metrics (digest, name, service, resource, scope, message) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key, clean(point.name), resource.service, resource.id, scope.id, message),
                )
                self._references.add_rows([(resource.id, scope.id)])
            self._metrics[key] = found
        return found

    def _service(self, name: str) -> int:
        found = self._services.get(name)
        if found is None:
            found = self._services[name] = self._row(
                "SELECT id FROM services WHERE name = ?",
                "INSERT INTO services (name) VALUES (?)",
                (name,),
            )
        return found

    def _row(
        self, select: str, insert: str, values: tuple[object, ...], looked_up_by: int = 1
    ) -> int:
        found = self._select(select, values[:looked_up_by])
        return self._insert(insert, values) if found is None else found

    def _select(self, statement: str, key: tuple[object, ...]) -> int | None:
        row = self._connection.execute(statement, key).fetchone()
        return None if row is None else int(row[0])

    def _insert(self, statement: str, values: tuple[object, ...]) -> int:
        inserted = self._connection.execute(statement, values).lastrowid
        assert inserted is not None
        return inserted
