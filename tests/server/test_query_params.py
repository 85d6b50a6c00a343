import pytest

from spanloom.errors import QueryError
from spanloom.server import query_params


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100ms", 100_000_000),
        ("1.5s", 1_500_000_000),
        ("1h30m", 5_400_000_000_000),
        ("250µs", 250_000),
        ("250us", 250_000),
        ("7ns", 7),
        (".5s", 500_000_000),
        ("2d", 172_800_000_000_000),
        ("0", 0),
    ],
)
def test_durations_read_as_in_go(text: str, expected: int) -> None:
    assert expected == query_params.duration_ns(text, "minDuration")


@pytest.mark.parametrize(
    "text", ["", "5", "ms", "1.5", "1s2", "-1s", "1 s", "9e9s", "1x", "9" * 40 + "h"]
)
def test_other_durations_are_refused_by_name(text: str) -> None:
    with pytest.raises(QueryError, match="minDuration"):
        query_params.duration_ns(text, "minDuration")


def test_short_trace_ids_are_padded_and_lowered() -> None:
    assert query_params.trace_id("ABCDEF0123456789") == "0" * 16 + "abcdef0123456789"


@pytest.mark.parametrize("text", ["", "xyz", "0" * 33, "12 34", "<script>"])
def test_what_is_no_trace_id_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="trace id"):
        query_params.trace_id(text)


def test_logfmt_takes_quotes_and_chinese() -> None:
    tags = query_params.tags_from_logfmt('http.route=/chat q="什么 是" e="say \\"hi\\"" empty=')

    assert tags == {"http.route": "/chat", "q": "什么 是", "e": 'say "hi"', "empty": ""}


@pytest.mark.parametrize("text", ["key", "=value", 'a="open', "a=1 b"])
def test_what_is_no_logfmt_is_refused_with_the_rest_that_cannot_be_read(text: str) -> None:
    with pytest.raises(QueryError, match="key=value"):
        query_params.tags_from_logfmt(text)


def test_json_tags_compare_as_text() -> None:
    tags = query_params.tags_from_json('{"error": true, "n": 72.5, "i": 123, "s": "x"}')

    assert tags == {"error": "true", "n": "72.5", "i": "123", "s": "x"}


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"a": null}', '{"a": {}}'])
def test_json_tags_must_be_a_flat_object(text: str) -> None:
    with pytest.raises(QueryError, match="tags"):
        query_params.tags_from_json(text)
