"""`spanloom cost estimate` over its own arithmetic, real price tables and a real server."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spanloom import semconv
from spanloom.cli.estimate import Workload, measure
from spanloom.cli.main import main
from spanloom.model import OpenSpan, OpenState, Trace
from spanloom.telemetry import pricing
from tests.builders import span, trace_id
from tests.live_server import LiveServer, live_server

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def spanloom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    monkeypatch.delenv("SPANLOOM_PRICES", raising=False)
    monkeypatch.delenv("SPANLOOM_URL", raising=False)
    pricing.use_price_file(None)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["cost", "estimate", *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield run
    pricing.use_price_file(None)


def call(number: int, model: str = "gpt-4o-mini", **fields: Any) -> Any:
    attributes = {
        semconv.GEN_AI_PROVIDER_NAME: fields.pop("provider", "openai"),
        semconv.GEN_AI_RESPONSE_MODEL: model,
    }
    return span(f"chat {model}", number, attributes=attributes, **fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two questions to an agent and one to a summarizer; and a trace without any model."""
    with live_server(tmp_path_factory.mktemp("data")) as server:
        server.send_spans(
            *(span("POST /chat", 1, trace=number, service="agent-api") for number in (1, 2)),
            call(2, trace=1, parent=1, tokens=(1000, 100), cost=0.5, service="agent-api"),
            call(3, "离线", trace=1, parent=1, tokens=(3000, 300), service="agent-api"),
            call(4, trace=2, parent=1, tokens=(2000, 200), service="agent-api"),
            call(5, trace=3, tokens=(700, 70), cost=0.25, service="summarizer"),
            span("GET /health", 6, trace=4, service="agent-api"),
        )
        yield server


def document(run: Run, *arguments: str) -> Any:
    code, out, _ = run("--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_the_reference_estimate(spanloom: Run) -> None:
    """10,000 queries a day at 0.0012 USD: 440 USD a month, line by line, with today's date."""
    code, out, err = spanloom("--users", "1000", "--queries", "10")

    assert (code, err) == (0, "")
    assert out.startswith("10,000 queries a day (1,000 users, 10 each), 30 days a month\n")
    lines = dict(re.findall(r"^(\w+) +([\d,.]+)", out.split("BASIS")[1], re.MULTILINE))
    assert lines == {
        "LLM": "360.00",
        "Server": "50.00",
        "Database": "30.00",
        "Embeddings": "0.00",
        "Monitoring": "0.00",
        "Total": "440.00",
    }
    assert "0.0012 USD a query: 4,000 → 1,000 tokens of gpt-4o-mini (openai)" in out
    assert f"on {datetime.now(UTC):%Y-%m-%d}" in out
    assert out.count("estimate of 2026-11") == 4


def test_every_number_can_be_stated(spanloom: Run) -> None:
    """The queries, the days, what a query costs, and what runs anyway."""
    found = document(
        spanloom,
        *("--users", "7", "--queries", "3", "--days", "31", "--cost-per-query", "0.5"),
        *("--server", "1.5", "--database", "2", "--embeddings", "3", "--monitoring", "4"),
    )

    assert found["queries_per_day"] == 21
    by_name = {item["name"]: item["usd_per_month"] for item in found["items"]}
    assert by_name == {
        "LLM": 21 * 31 * 0.5,
        "Server": 1.5,
        "Database": 2,
        "Embeddings": 3,
        "Monitoring": 4,
    }
    assert found["usd_per_month"] == sum(by_name.values())


def test_another_model_and_other_tokens_have_another_price(spanloom: Run) -> None:
    """As the price tables have it, the same that puts costs on spans."""
    found = document(
        spanloom,
        *("--provider", "anthropic", "--model", "claude-3-5-haiku-latest"),
        *("--input-tokens", "500", "--output-tokens", "50"),
    )

    expected = pricing.cost_usd(
        provider="anthropic", model="claude-3-5-haiku-latest", input_tokens=500, output_tokens=50
    )
    assert expected
    assert found["usd_per_query"] == float(expected)


def test_own_prices_win(spanloom: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's price file decides here as it does for spans, and is named."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "gpt-4o-mini"\ninput = 1.0\noutput = 2.0\n')
    monkeypatch.setenv("SPANLOOM_PRICES", str(prices))
    pricing.use_price_file(prices)

    found = document(spanloom)

    assert found["usd_per_query"] == 0.006
    assert "SPANLOOM_PRICES" in found["items"][0]["basis"]


def test_a_model_without_a_price_is_said_with_the_ways_out(spanloom: Run) -> None:
    """Not 0, and not the price of a similar one."""
    code, out, err = spanloom("--model", "离线-small")

    assert (code, out) == (2, "")
    assert "'离线-small' of 'openai'" in err
    assert "SPANLOOM_PRICES" in err
    assert "--cost-per-query" in err
    assert len(err.splitlines()) == 1


def test_without_price_tables_the_extra_is_named(
    spanloom: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where spanloom[cost] is not installed."""
    monkeypatch.setattr(pricing._READER, "prices", lambda: None)
    monkeypatch.setattr("spanloom.cli.cost.find_spec", lambda name: None)

    code, _, err = spanloom()

    assert code == 2
    assert "pip install 'spanloom[cost]'" in err
    assert spanloom("--cost-per-query", "0.0012")[0] == 0


def test_tokens_are_measured_at_a_running_server(spanloom: Run, server: LiveServer) -> None:
    """By service and model; the cost on the span, else the price of its tokens, else a word."""
    code, out, err = spanloom("--url", server.url, "--service", "agent-api")

    gpt = Decimal("0.5") + (Decimal(2000) * 15 / 100 + Decimal(200) * 60 / 100) / 1_000_000
    assert code == 0
    assert "mean of 2 traces" in out
    assert f"{gpt / 2:f}".rstrip("0") in out
    assert re.search(r"agent-api +gpt-4o-mini +1\.0 +1,500 → 150 +0\.25021", out)
    assert re.search(r"agent-api +离线 +0\.5 +1,500 → 150 +no price", out)
    assert "summarizer" not in out
    assert err.startswith("spanloom: 1 of 3 model calls have no price and count as 0")


def test_measured_numbers_as_json(spanloom: Run, server: LiveServer) -> None:
    """Every service; traces without a model are no queries."""
    found = document(spanloom, "--url", server.url)

    assert found["measured"]["queries"] == 3
    assert found["measured"]["unpriced_calls"] == 1
    uses = {(use["service"], use["model"]): use for use in found["measured"]["uses"]}
    assert set(uses) == {
        ("agent-api", "gpt-4o-mini"),
        ("agent-api", "离线"),
        ("summarizer", "gpt-4o-mini"),
    }
    assert uses["agent-api", "gpt-4o-mini"]["input_tokens"] == 3000
    assert uses["agent-api", "离线"]["cost_usd"] is None
    assert found["items"][0]["usd_per_month"] == pytest.approx(found["usd_per_query"] * 300_000)


def test_measured_tokens_priced_as_another_model(spanloom: Run, server: LiveServer) -> None:
    """What the same traffic would cost there, whatever it cost here."""
    found = document(spanloom, "--url", server.url, "--model", "gpt-4o-mini")

    expected = pricing.cost_usd(
        provider="openai", model="gpt-4o-mini", input_tokens=6700, output_tokens=670
    )
    assert expected
    assert found["usd_per_query"] == pytest.approx(float(expected) / 3)
    assert found["measured"]["unpriced_calls"] == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--service", "nobody"], "model calls of nobody is at"),
        (["--since", "1s"], "model calls is at"),
    ],
)
def test_no_data_is_a_sentence(
    spanloom: Run, server: LiveServer, arguments: list[str], what: str
) -> None:
    """Exit code 1, and both ways on."""
    code, out, err = spanloom("--url", server.url, *arguments)

    assert (code, out) == (1, "")
    assert what in err
    assert "ask the service something first, or leave --url and --db out" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "free"], "'free' is not an amount in dollars"),
        (["--cost-per-query", "-1"], "is not an amount in dollars"),
        (["--monitoring", "NaN"], "is not an amount in dollars"),
        (["--database", "1e99"], "is not an amount in dollars"),
        (["--users", "0"], "--users"),
        (["--url", "http://127.0.0.1:9", "--cost-per-query", "1"], "give one of them"),
        (["--service", "agent-api"], "say where, by --url or --db"),
    ],
)
def test_wrong_usage_ends_with_2(spanloom: Run, arguments: list[str], message: str) -> None:
    code, out, err = spanloom(*arguments)

    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_a_trace_that_still_runs_is_not_measured() -> None:
    """Its most expensive call may be yet to come."""
    done = call(1, tokens=(10, 1))
    running = OpenSpan(span("POST /chat", 2), OpenState.RUNNING, "p", 1)
    traces = [Trace(trace_id(1), (done,)), Trace(trace_id(2), (done,), (running,))]

    measured = measure(traces, service=None, price=lambda _: Decimal(2))

    assert measured is not None
    assert (measured.queries, measured.usd_per_query) == (1, Decimal(2))
    assert measure(traces[1:], service=None, price=lambda _: None) is None


def test_the_workload_is_what_all_users_ask() -> None:
    work = Workload(users=3, queries=5, days=30)

    assert (work.queries_per_day, work.queries_per_month) == (15, 450)
