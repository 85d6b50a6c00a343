"""What running an agent costs a month: pure arithmetic over stated or measured numbers.

    queries a month = users × queries each a day × days
    LLM             = queries a month × tokens of a query × price of a token
    the rest        = so much a month, whatever the traffic (while it fits on one server)

What a token costs is known to `spanloom.telemetry.pricing` alone; here stand only prices that no
table publishes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from spanloom import semconv
from spanloom.model import Span, Trace, Usage


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is asked."""

    users: int
    queries: int
    """Of each user, a day."""
    days: int
    """A month."""

    @property
    def queries_per_day(self) -> int:
        """Of all users."""
        return self.users * self.queries

    @property
    def queries_per_month(self) -> int:
        """Of all users."""
        return self.queries_per_day * self.days


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the bill."""

    name: str
    usd_per_month: Decimal
    basis: str
    """Where the number is from."""


AS_OF: Final = "estimate of 2026-11"
FIXED: Final = (
    Item("Server", Decimal(50), "one virtual machine, 4 vCPU and 8 GB"),
    Item("Database", Decimal(30), "PostgreSQL, the smallest managed size"),
    Item("Embeddings", Decimal(0), "none or computed on the server"),
    Item("Monitoring", Decimal(0), "self-hosted on the server"),
)
"""What does not grow with the traffic: typical list prices of `AS_OF`, meant to be overridden."""

PROVIDER: Final = "openai"
MODEL: Final = "gpt-4o-mini"
INPUT_TOKENS: Final = 4_000
OUTPUT_TOKENS: Final = 1_000
"""A query of an agent that retrieves: a few model calls, most of the input retrieved passages."""

Price = Callable[[Span], Decimal | None]
"""What a model call costs in dollars; None where no price is known."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What one service used of one model, over all queries looked at."""

    service: str
    provider: str
    model: str
    calls: int
    usage: Usage
    unpriced: int
    """Calls that `usage.cost_usd` leaves out, because nobody knows what they cost."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What real queries used."""

    queries: int
    """Finished traces with model calls; above 0."""
    uses: Sequence[ModelUse]

    @property
    def usage(self) -> Usage:
        """Of all queries together."""
        return sum((use.usage for use in self.uses), Usage())

    @property
    def calls(self) -> int:
        """Of all models."""
        return sum(use.calls for use in self.uses)

    @property
    def unpriced(self) -> int:
        """Calls without a price."""
        return sum(use.unpriced for use in self.uses)

    @property
    def usd_per_query(self) -> Decimal:
        """On average; too low where calls have no price."""
        return Decimal(str(self.usage.cost_usd or 0)) / self.queries


def measure(traces: Iterable[Trace], *, service: str | None, price: Price) -> Measured | None:
    """Add up the model calls, by service and model; None where there are none.

    A trace in which something is open is left out: it may have its most expensive call before
    it. Failed runs count, because they are billed as well.
    """
    spans: dict[tuple[str, str, str], list[Span]] = defaultdict(list)
    queries = 0
    for trace in traces:
        calls = [span for span in trace.spans if _is_call(span, service)]
        if not calls or trace.open_spans:
            continue
        queries += 1
        for span in calls:
            key = (span.service_name, provider_of(span) or "unknown", model_of(span) or "unknown")
            spans[key].append(span)
    if not queries:
        return None
    uses = []
    for (name, provider, model), calls in sorted(spans.items()):
        usages = [_priced(span, price) for span in calls]
        uses.append(
            ModelUse(
                name,
                provider,
                model,
                len(calls),
                sum(usages, Usage()),
                sum(usage.cost_usd is None and usage.total_tokens > 0 for usage in usages),
            )
        )
    return Measured(queries, uses)


def provider_of(span: Span) -> str | None:
    """Whom the client of a model call named."""
    return _text(span, semconv.GEN_AI_PROVIDER_NAME)


def model_of(span: Span) -> str | None:
    """The model that answered, else the one that was asked."""
    return _text(span, semconv.GEN_AI_RESPONSE_MODEL) or _text(span, semconv.GEN_AI_REQUEST_MODEL)


def _is_call(span: Span, service: str | None) -> bool:
    is_call = span.attributes.get(semconv.GEN_AI_OPERATION_NAME) in semconv.LLM_OPERATIONS
    return is_call and service in {None, span.service_name}


def _text(span: Span, name: str) -> str | None:
    value = span.attributes.get(name)
    return value if isinstance(value, str) and value else None


def _priced(span: Span, price: Price) -> Usage:
    usage, dollars = Usage.of_span(span), price(span)
    cost = None if dollars is None else float(dollars)
    return Usage(usage.input_tokens, usage.output_tokens, cost)
