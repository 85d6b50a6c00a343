"""What the page draws, without a browser."""

from spanloom.model import LogEvent, Resource, Span, Trace
from spanloom.server.waterfall import PALETTE_SIZE, category, colours, stray_count, trace_view
from tests.server.agent_trace import HOSTILE, MS, START, Builder, agent_trace

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def test_rows_are_the_tree_in_order_with_sizes_that_fold() -> None:
    # root
    # ├ a
    # │ ├ a1
    # │ └ a2
    # └ b
    b = Builder(TRACE_ID)
    root = b.span("root", lasts=100)
    last = b.span("b", root, at=50)
    a = b.span("a", root, at=10)
    b.span("a2", a, at=12)
    b.span("a1", a, at=11)

    rows = trace_view(b.trace(), [])["rows"]

    assert [row["name"] for row in rows] == ["root", "a", "a1", "a2", "b"]
    assert [row["depth"] for row in rows] == [0, 1, 2, 2, 1]
    assert [row["size"] for row in rows] == [5, 3, 1, 1, 1]
    assert [row["parent"] for row in rows] == [-1, 0, 1, 1, 0]
    assert rows[4]["offset"] == 50 * MS
    assert last == rows[4]["id"]


def test_tokens_and_cost_are_summed_upwards_once() -> None:
    rows = {row["name"]: row for row in trace_view(agent_trace(TRACE_ID).trace(), [])["rows"]}

    # The workflow span carries sums of its own as attributes; they must not be added again.
    assert (rows["POST /chat"]["input"], rows["POST /chat"]["output"]) == (2310, 248)
    assert (rows["invoke_node tools"]["input"], rows["invoke_node tools"]["output"]) == (640, 31)
    assert "input" not in rows["POST /v1/chat/completions"]
    assert rows["chat offline-large"]["category"] == "llm"


def test_a_span_whose_parent_is_missing_is_marked() -> None:
    b = agent_trace(TRACE_ID)
    view = trace_view(b.trace(), [])
    assert view["rows"][0]["orphan"] == "00f067aa0ba902b7"
    assert stray_count(view) == 0

    b.span("lost branch", "d" * 16, at=100)
    assert stray_count(trace_view(b.trace(), [])) == 1


def test_harmful_characters_are_written_out_and_long_lines_cut() -> None:
    b = agent_trace(TRACE_ID)
    b.log("x" * 10_000, b.spans[0].span_id, at=3)

    view = trace_view(b.trace(), b.logs)

    row = next(row for row in view["rows"] if "script" in row["name"])
    assert f"execute_tool {HOSTILE}".replace("\x1b", "\\x1b") == row["name"]
    assert row["outcome"] == "timeout"
    assert max(len(line["body"]) for line in view["logs"]) == 4000


def test_log_lines_point_to_their_rows() -> None:
    b = agent_trace(TRACE_ID)
    stranger = LogEvent(START, body={"a": (1, "二")}, trace_id=TRACE_ID, span_id="e" * 16)

    view = trace_view(b.trace(), [*b.logs, stranger])

    failed = next(line for line in view["logs"] if line["body"] == "tool_failed")
    assert view["rows"][failed["row"]]["name"] == "execute_tool calculator"
    assert (failed["level"], failed["offset"]) == ("ERROR", 729 * MS)
    assert (view["logs"][-1]["row"], view["logs"][-1]["body"]) == (-1, '{"a": [1, "二"]}')


def test_services_keep_their_colour_and_never_share_one_while_there_are_enough() -> None:
    names = [f"service-{number}" for number in range(PALETTE_SIZE)]

    assert len(set(colours(names).values())) == PALETTE_SIZE
    assert colours(["agent"]) == colours(["agent", "agent"])
    assert len(colours(f"s{number}" for number in range(40))) == 40


def test_a_chain_of_ten_thousand_spans_is_no_problem() -> None:
    b = Builder(TRACE_ID)
    parent = ""
    for number in range(10_000):
        parent = b.span(f"step {number}", parent, at=number / 100, lasts=1)

    rows = trace_view(b.trace(), [])["rows"]

    assert (rows[0]["size"], rows[-1]["depth"], rows[-1]["size"]) == (10_000, 9_999, 1)


def test_categories_come_from_attributes_of_any_shape() -> None:
    def of(**attributes: object) -> str:
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        span = Span(TRACE_ID, "1" * 16, "s", 0, 1, attributes=named, resource=Resource())
        return category(span)

    assert of(gen_ai__operation__name="execute_tool") == "tool"
    assert of(http__request__method="GET") == "http"
    assert of(gen_ai__operation__name=("chat",)) == ""
    assert of() == ""


def test_an_empty_duration_is_drawn() -> None:
    span = Span(TRACE_ID, "1" * 16, "instant", START, START)

    assert trace_view(Trace(TRACE_ID, (span,)), [])["duration"] == 0
