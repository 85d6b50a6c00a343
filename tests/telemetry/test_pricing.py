"""What calls cost: dated public prices, a user's own file, sums, and life without the extra."""

import decimal
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import data_snapshot

from spanloom.telemetry import llm_call, pricing, tool
from spanloom.telemetry.price_file import PriceFileError, read_price_file
from spanloom.telemetry.pricing import cost_usd
from spanloom.telemetry.testing import Captured, capture_spans

NOW = datetime(2026, 9, 1, tzinfo=UTC)
MILLION = 1_000_000


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capture_spans() as captured:
        yield captured


@pytest.fixture
def price_file(tmp_path: Path) -> Iterator[Any]:
    """Write prices and use them until the test ends."""

    def use(text: str) -> Path:
        path = tmp_path / "价格.toml"
        path.write_text(text, encoding="utf-8")
        pricing.use_price_file(path)
        return path

    yield use
    pricing.use_price_file(None)


def cost(model: str = "gpt-4o", provider: str | None = "openai", **call: Any) -> Decimal | None:
    """What a call costs on the day of these tests."""
    return cost_usd(
        **{
            "provider": provider,
            "model": model,
            "input_tokens": MILLION,
            "output_tokens": 0,
            "at": NOW,
            **call,
        }
    )


def test_a_price_is_that_of_its_day() -> None:
    """The o3 became five times cheaper on 2025-06-10; what was paid before stays paid."""
    before = cost("o3", at=datetime(2025, 5, 1, tzinfo=UTC))
    after = cost("o3", at=NOW)

    assert (before, after) == (10, 2)


def test_input_includes_what_was_cached() -> None:
    """Cached tokens are a part of the input at a price of their own, and not billed twice."""
    plain = cost("claude-sonnet-4-5", "anthropic", input_tokens=1000)
    read = cost("claude-sonnet-4-5", "anthropic", input_tokens=1000, cache_read=400)
    written = cost("claude-sonnet-4-5", "anthropic", input_tokens=1000, cache_write=400)
    for_an_hour = cost(
        "claude-sonnet-4-5", "anthropic", input_tokens=1000, cache_write=400, cache_write_1h=400
    )

    assert plain == Decimal("0.003")
    assert read == Decimal("0.0018") + Decimal("0.00012")
    assert written == Decimal("0.0018") + Decimal("0.0015")
    assert for_an_hour == Decimal("0.0018") + Decimal("0.0024")


def test_a_long_prompt_has_the_price_of_its_tier() -> None:
    """Above 200,000 tokens every token costs the higher price."""
    below = cost("gemini-2.5-pro", "gcp.gemini", input_tokens=200_000)
    above = cost("gemini-2.5-pro", "gcp.gemini", input_tokens=200_001)

    assert below == Decimal("0.25")
    assert above == Decimal("0.5000025")


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("offline-small", "openai"),
        ("gpt-4o", "anthropic"),
        ("gpt-4o", "my-openai-compatible-server"),
        ("gpt-4o", None),
        ("gpt-4o", ""),
        ("", "openai"),
        (None, "openai"),
        ("whisper-large-v3", "groq"),  # billed by the hour
        ("gpt-4o", "github-copilot"),  # a subscription
    ],
)
def test_what_has_no_price_has_none(model: Any, provider: str | None) -> None:
    """Unknown is None: never 0, and never the price of something similar."""
    assert cost(model, provider) is None


@pytest.mark.parametrize(
    "tokens",
    [
        {"input_tokens": None},
        {"output_tokens": None},
        {"input_tokens": -1},
        {"input_tokens": 5, "cache_read": 6},
        {"input_tokens": "5"},
    ],
)
def test_counts_that_say_nothing_have_no_price(tokens: Any) -> None:
    """Missing and contradictory counts give no price and no error."""
    assert cost(**tokens) is None


def test_every_well_known_provider_leads_to_its_table() -> None:
    """The conventions' names differ from the table's; a model of each is found."""
    known = {
        "anthropic": "claude-sonnet-4-5",
        "aws.bedrock": "amazon.nova-pro-v1:0",
        "azure.ai.inference": "gpt-4o",
        "azure.ai.openai": "gpt-4o",
        "cohere": "command-r-plus",
        "deepseek": "deepseek-chat",
        "gcp.gemini": "gemini-2.5-pro",
        "gcp.gen_ai": "gemini-2.5-pro",
        "gcp.vertex_ai": "gemini-2.5-pro",
        "groq": "llama-3.3-70b-versatile",
        "mistral_ai": "mistral-large-latest",
        "moonshot_ai": "kimi-k2-0711-preview",
        "openai": "gpt-4o",
        "perplexity": "sonar",
        "x_ai": "grok-4",
    }

    assert [name for name, model in known.items() if not cost(model, name)] == []


def test_the_host_says_who_is_paid() -> None:
    """Many providers are called by OpenAI's client; what is no provider's host is a gateway."""
    call: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 10}
    direct = cost("deepseek-chat", "deepseek", **call)

    assert cost("deepseek-chat", "openai", server_address="api.deepseek.com", **call) == direct
    assert cost("deepseek-chat", "openai", server_address="llm.internal", **call) is None
    assert cost("gpt-4o", "openai", server_address="llm.internal") == cost("gpt-4o")
    assert cost("gpt-4o", "openai", server_address="api.deepseek.com") is None


def test_an_unknown_model_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known and unknown models are remembered, and so many names cannot fill the memory."""
    looked_up: list[str] = []
    published = pricing._published

    def counted(snapshot: Any, provider: Any, address: Any, model: str) -> Any:
        looked_up.append(model)
        return published(snapshot, provider, address, model)

    monkeypatch.setattr(pricing, "_published", counted)
    for _ in range(3):
        assert cost("never-heard-of") is None
    assert looked_up == ["never-heard-of"]

    for number in range(3000):
        cost(f"invented-{number}")
    prices = pricing._READER.prices()
    assert prices is not None
    assert len(prices._known) <= pricing._MAX_KNOWN


def test_prices_follow_a_table_that_updates_itself() -> None:
    """An application may let genai-prices update itself: what was looked up before is not kept."""
    assert cost() is not None
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot([], from_auto_update=True))
    try:
        assert cost() is None
    finally:
        data_snapshot.set_custom_snapshot(None)
    assert cost() is not None


def test_the_applications_decimal_context_does_not_matter() -> None:
    """An application that rounds to cents, or traps rounding, gets the same costs."""
    with decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact])):
        assert cost(input_tokens=123_457) == Decimal("0.3086425")
        assert pricing.added(Decimal("1.2345"), Decimal("0.1")) == Decimal("1.3345")


def test_ten_digits_are_kept(price_file: Any) -> None:
    """Sums of many digits end after ten significant ones."""
    price_file('[[price]]\nmodel = "m"\ninput = 0.123456789123\noutput = 0\n')

    assert cost("m", input_tokens=1) == Decimal("0.0000001234567891")


OWN = """
# 自建模型的价格，单位：美元 / 百万 token
[[price]]
provider = "openai"
model = "通义-*"
input = 0.20  # 输入
output = 0.60
cache_read = 0.02

[[price]]
provider = "openai"
model = "通义-*"
valid_from = 2026-06-01
input = 0.10
output = 0.30

[[price]]
model = "gpt-4o"
valid_from = 2026-01-01
input = 1
output = 1

[[price]]
model = "free-*"
input = 0
output = 0
"""


def test_own_prices_come_first(price_file: Any) -> None:
    """Patterns, providers, history and cached tokens of a user's file."""
    price_file(OWN)
    early = datetime(2026, 5, 31, 23, 59, tzinfo=UTC)

    assert cost("通义-7B", at=early) == Decimal("0.2")
    assert cost("通义-7b", at=early, cache_read=MILLION) == Decimal("0.02")
    assert cost("通义-7B", output_tokens=MILLION) == Decimal("0.4")
    assert cost("通义-7B", cache_read=MILLION) == Decimal("0.1")
    assert cost("通义-7B", "vllm") is None
    assert cost("free-1", "anything") == 0
    assert cost("free-1", None) == 0
    assert cost("gpt-4o") == 1
    assert cost("gpt-4o", at=datetime(2025, 12, 31, tzinfo=UTC)) == Decimal("2.5")
    assert cost("o3") == 2


def test_a_day_begins_at_midnight_utc(price_file: Any) -> None:
    """Whatever zone the time is given in; without one it is UTC."""
    price_file(OWN)
    beijing = timezone(timedelta(hours=8))

    assert cost("通义", at=datetime(2026, 6, 1, tzinfo=UTC)) is None  # no dash: another model
    assert cost("通义-7B", at=datetime(2026, 6, 1, 7, 59, tzinfo=beijing)) == Decimal("0.2")
    assert cost("通义-7B", at=datetime(2026, 6, 1, 8, tzinfo=beijing)) == Decimal("0.1")
    assert cost("通义-7B", at=datetime(2026, 6, 1)) == Decimal("0.1")  # noqa: DTZ001 - the point


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"[[price]]\nmodel = ", "is not TOML: "),
        (b"# \xff\xfe", "is not UTF-8"),
        (b"", "has no [[price]]"),
        (b"price = 3", "has no [[price]]"),
        (b"price = [3]", "price 1 is not a table"),
        (b"[[prices]]\nmodel = 'm'", "'prices' is unknown"),
        (b"[[price]]\ninput = 1\noutput = 1", "price 1 has no 'model'"),
        (b"[[price]]\nmodel = 'm'\ninput = 1", "price 1 has no 'output'"),
        (b"[[price]]\nmodel = 7\ninput = 1\noutput = 1", "'model' must be a text"),
        (b"[[price]]\nmodel = 'm'\ninput = '1'\noutput = 1", "'input' must be a number"),
        (b"[[price]]\nmodel = 'm'\ninput = true\noutput = 1", "'input' must be a number"),
        (b"[[price]]\nmodel = 'm'\ninput = -1\noutput = 1", "'input' must be 0 or more"),
        (b"[[price]]\nmodel = 'm'\ninput = 1\noutput = nan", "'output' must be 0 or more"),
        (b"[[price]]\nmodel = 'm'\ninput = 1\noutput = 1\ncache = 1", "'cache' is unknown"),
        (b"[[price]]\nmodel='m'\ninput=1\noutput=1\nvalid_from='2026-01-01'", "'valid_from'"),
        (b"[[price]]\nmodel='m'\ninput=1\noutput=1\nvalid_from=2026-01-01T00:00:00Z", "valid_from"),
    ],
)
def test_a_bad_file_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, wrong: str
) -> None:
    """The line names file and fault; public prices still hold."""
    path = tmp_path / "prices.toml"
    path.write_bytes(content)
    with pytest.raises(PriceFileError):
        read_price_file(path)
    try:
        pricing.use_price_file(path)
        assert cost() == Decimal("2.5")
        assert cost() == Decimal("2.5")
    finally:
        pricing.use_price_file(None)

    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith(f"SPANLOOM_PRICES is ignored: {path}")
    assert wrong in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_file_that_is_not_there_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong path and a folder are named like every other fault."""
    try:
        pricing.use_price_file(tmp_path / "none.toml")
        pricing.use_price_file(tmp_path)
    finally:
        pricing.use_price_file(None)

    assert [record.getMessage() for record in caplog.records] == [
        f"SPANLOOM_PRICES is ignored: {tmp_path}/none.toml: No such file or directory",
        f"SPANLOOM_PRICES is ignored: {tmp_path}: Is a directory",
    ]


def test_a_call_and_the_tool_around_it_carry_the_cost(captured: Captured) -> None:
    """The model that answered is priced; the tool has the sum, exact in ten digits."""
    with tool("summarise"):
        for _ in range(3):
            with llm_call("my-deployment", provider="azure.ai.openai") as call:
                call.response(model="gpt-4o-2024-08-06")
                call.usage(input_tokens=30, output_tokens=10, cache_read_input_tokens=20)

    first, *_ = [span for span in captured.spans if span.name == "chat my-deployment"]
    assert (first.attributes or {})["spanloom.cost.usd"] == 0.00015
    assert "spanloom.cost.partial" not in (first.attributes or {})
    found = captured.one("execute_tool summarise").attributes or {}
    assert found["spanloom.cost.usd"] == 0.00045
    assert "spanloom.cost.partial" not in found


def test_without_an_answer_the_model_asked_is_priced(captured: Captured) -> None:
    """A provider that does not say which model answered is taken at its word."""
    with llm_call("gpt-4o", provider="openai") as call:
        call.usage(input_tokens=1000, output_tokens=100)

    assert (captured.one("chat gpt-4o").attributes or {})["spanloom.cost.usd"] == 0.0035


def test_a_sum_says_when_it_is_not_all(captured: Captured) -> None:
    """One call without a price makes the sums around it partial, and only those."""
    with tool("outer"):
        with tool("priced"), llm_call("gpt-4o", provider="openai") as call:
            call.usage(input_tokens=1000, output_tokens=0)
        with tool("unpriced"), llm_call("offline-small", provider="openai") as call:
            call.usage(input_tokens=1000, output_tokens=0)

    costs = {
        span.name: (
            (span.attributes or {}).get("spanloom.cost.usd"),
            (span.attributes or {}).get("spanloom.cost.partial"),
        )
        for span in captured.spans
    }
    assert costs == {
        "chat gpt-4o": (0.0025, None),
        "execute_tool priced": (0.0025, None),
        "chat offline-small": (None, None),
        "execute_tool unpriced": (None, None),
        "execute_tool outer": (0.0025, True),
    }


def test_an_answer_cut_off_cost_at_least_this(captured: Captured) -> None:
    """Its last count never came, so the cost is marked; an error at once is not billed."""
    with tool("retrying"):
        with pytest.raises(RuntimeError), llm_call("gpt-4o", provider="openai"):
            raise RuntimeError("503")
        with llm_call("gpt-4o", provider="openai") as call:
            call.usage(input_tokens=1000, output_tokens=0)
    with tool("cut"), suppress(TimeoutError), llm_call("gpt-4o", provider="openai") as call:
        call.usage(input_tokens=1000, output_tokens=1)
        raise TimeoutError

    assert "spanloom.cost.partial" not in (captured.one("execute_tool retrying").attributes or {})
    cut = captured.one("execute_tool cut")
    (chat,) = captured.children_of(cut)
    for span in (cut, chat):
        assert (span.attributes or {})["spanloom.cost.usd"] == 0.00251
        assert (span.attributes or {})["spanloom.cost.partial"] is True


def python(script: str, **environment: str) -> str:
    """Run a script in a fresh interpreter; what it prints, standard error included."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=True,
    )
    return done.stdout.decode()


WITHOUT_EXTRA = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "genai_prices":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from spanloom.telemetry import llm_call
from spanloom.telemetry.testing import capture_spans
with capture_spans() as captured:
    for _ in range(3):
        with llm_call("gpt-4o", provider="openai") as call:
            call.usage(input_tokens=10, output_tokens=1)
print("spanloom.cost.usd" in captured.spans[-1].attributes)
"""


def test_without_the_extra_spans_carry_no_cost(tmp_path: Path) -> None:
    """No error and one debug line; a price file that cannot be used is a warning."""
    line = "spans carry no cost: install spanloom[cost] (No module named 'genai_prices')"
    assert python(WITHOUT_EXTRA).splitlines() == [f"DEBUG {line}", "False"]

    path = tmp_path / "prices.toml"
    path.write_text(OWN, encoding="utf-8")
    assert python(WITHOUT_EXTRA, SPANLOOM_PRICES=str(path)).splitlines() == [
        f"WARNING {line}",
        "False",
    ]


def test_prices_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """Importing and setting up is not slower; without `setup` the environment's file is used."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN, encoding="utf-8")
    script = """
import os, sys
from spanloom.telemetry import pricing, setup, tool
if os.environ.get("SET_UP"):
    setup("s")
with tool("t"):
    pass
print("genai_prices" in sys.modules)
print(pricing.cost_usd(provider="x", model="free-1", input_tokens=1, output_tokens=1))
"""
    off = {"OTEL_SDK_DISABLED": "true", "SPANLOOM_LOG_STEPS": "false"}
    assert python(script, SPANLOOM_PRICES=str(path), **off).split() == ["False", "0"]
    assert python(script, SPANLOOM_PRICES=str(path), SET_UP="1", **off).split() == ["False", "0"]


def test_a_fork_while_prices_are_read_does_not_hang() -> None:
    """The child has no thread that would finish reading, so it goes on without prices."""
    script = """
import os
from spanloom.telemetry import pricing
pricing._READER._lock.acquire()
child = os.fork()
if child == 0:
    cost = pricing.cost_usd(provider="openai", model="o3", input_tokens=1, output_tokens=1)
    os._exit(0 if cost is None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(script) == "0\n"
