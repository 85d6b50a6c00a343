import dataclasses
from pathlib import Path
from typing import Any

import pytest

from spanloom import semconv
from spanloom.telemetry import (
    TelemetrySettings,
    deadline,
    embeddings,
    llm_call,
    rerank,
    retrieval,
    tool,
)
from spanloom.telemetry.reference import SPANS, attributes_of, page
from spanloom.telemetry.testing import capture_spans

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def test_the_page_is_up_to_date() -> None:
    """Its tables are what `python -m spanloom.telemetry.reference docs/telemetry.md` makes."""
    written = PAGE.read_text(encoding="utf-8")

    assert written == page(written), "run: python -m spanloom.telemetry.reference docs/telemetry.md"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TelemetrySettings)])
def test_every_setting_is_on_the_page(name: str) -> None:
    """With its default and its sentence."""
    row = f"| `{name}` | "

    assert (row in PAGE.read_text(encoding="utf-8")) == (name != "problems")


async def test_hand_written_spans_carry_what_the_page_says() -> None:
    """Each has what it always has, and nothing that is not listed."""
    with capture_spans() as captured:
        async with deadline(30):
            with tool("t", call_id="1"), llm_call("m", provider="p", stream=True, seed=1) as call:
                call.chunk()
                call.usage(input_tokens=1, output_tokens=1, cache_read_input_tokens=1)
                call.response(model="m-1", id="2", finish_reasons=["stop"])
            with retrieval("i", top_k=3) as search:
                search.results(1)
            with (
                rerank("i", model="m", top_k=3),
                embeddings("m", provider="p", dimensions=8) as one,
            ):
                one.usage(input_tokens=3)
            with pytest.raises(ValueError, match="no"), tool("t"):
                raise ValueError("no")

    assert len(captured.spans) == 6
    check(captured.spans)


def check(spans: list[Any]) -> None:
    for span in spans:
        always, possible = attributes_of(span.attributes[semconv.GEN_AI_OPERATION_NAME])
        assert always <= set(span.attributes) <= possible, span.name


def test_every_operation_of_the_library_is_on_the_page() -> None:
    """None is left out but those that only hand-written code names."""
    operations = {value for name, value in vars(semconv).items() if name.startswith("OP_")}

    assert operations - set(SPANS) == {semconv.OP_TEXT_COMPLETION, semconv.OP_GENERATE_CONTENT}
