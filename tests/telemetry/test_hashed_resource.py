import pytest
from opentelemetry.sdk import resources
from opentelemetry.sdk.resources import Resource

from spanloom.telemetry.hashed_resource import HashedResource


def test_it_is_the_resource_it_is_made_of() -> None:
    """Equal both ways, one key of a dictionary, merged as any other."""
    plain = Resource({"service.name": "服务", "list": (1, 2)}, "https://schema.example/1")
    hashed = HashedResource(plain)
    assert hashed == plain
    assert plain == hashed
    assert hash(hashed) == hash(plain)
    assert {plain: "found"}[hashed] == "found"
    assert hashed != HashedResource(Resource({"service.name": "other"}))
    merged = hashed.merge(Resource({"more": 1}))
    assert dict(merged.attributes) == {**plain.attributes, "more": 1}
    assert hash(merged) != hash(hashed)


def test_it_is_written_as_json_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is looked for: this is why it exists."""
    hashed = HashedResource(Resource({"service.name": "a"}))

    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(resources, "dumps", refuse)
    assert {hashed: 1}[hashed] == 1
    with pytest.raises(AssertionError, match="hashed again"):
        hash(Resource({"service.name": "a"}))
