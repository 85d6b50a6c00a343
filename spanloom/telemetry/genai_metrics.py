"""OpenTelemetry instruments: GenAI metrics with names and buckets of the conventions.

Two vocabularies exist. `newest` is the conventions repository's; `released` is what the official
instrumentations of 2026 still send. A dashboard has to choose one, so exactly one is sent.
"""

from dataclasses import dataclass
from typing import Final, Literal

from opentelemetry import metrics
from opentelemetry.metrics import Histogram, Meter, MeterProvider

from spanloom import __version__, semconv
from spanloom.telemetry.totals import Sums, Total

MetricNames = Literal["newest", "released"]

SECONDS_BUCKETS: Final = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
WORKFLOW_BUCKETS: Final = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
AGENT_BUCKETS: Final = (
    *(0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8),
    *(25.6, 51.2, 102.4, 204.8, 409.6),
)
LATENCY_BUCKETS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of `agent_latency_seconds`."""


@dataclass(slots=True)
class ModelCall:
    """One measured model call; times in seconds.

    Not frozen: that takes three times as long to make.
    """

    provider: str | None
    request_model: str | None
    response_model: str | None
    operation: str
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    time_to_first_chunk: float | None
    error_type: str | None
    server_address: str | None
    server_port: int | None
    cache_read: int | None
    cache_write: int | None
    reasoning: int | None


class Instruments:
    """Every OpenTelemetry instrument of the library, made on one meter."""

    def __init__(self, meter: Meter, names: MetricNames, sums: Sums) -> None:
        def seconds(name: str, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> Histogram:
            return meter.create_histogram(
                name, unit="s", explicit_bucket_boundaries_advisory=list(buckets)
            )

        def tokens(name: str) -> Histogram:
            return meter.create_histogram(
                name, unit="{token}", explicit_bucket_boundaries_advisory=list(TOKEN_BUCKETS)
            )

        def total(name: str, unit: str = "", *, goes_down: bool = False) -> Total:
            return Total(meter, sums, name, unit, goes_down=goes_down)

        self.names: MetricNames = names
        self.requests = total(f"{semconv.PROM_REQUESTS}_total")
        self.latency: Histogram = seconds(semconv.PROM_LATENCY_SECONDS, LATENCY_BUCKETS)
        self.tool_calls = total(f"{semconv.PROM_TOOL_CALLS}_total")
        self.tokens = total(f"{semconv.PROM_TOKENS}_total")
        self.llm_calls = total(f"{semconv.PROM_LLM_CALLS}_total")
        self.cost = total(f"{semconv.PROM_COST_USD}_total")
        self.step_tokens = total(f"{semconv.PROM_STEP_TOKENS}_total")
        self.step_cost = total(f"{semconv.PROM_STEP_COST_USD}_total")
        self.active_requests = total(semconv.PROM_ACTIVE_REQUESTS, goes_down=True)
        self.invoke_workflow = seconds(semconv.METRIC_INVOKE_WORKFLOW_DURATION, WORKFLOW_BUCKETS)
        self.invoke_agent = seconds(semconv.METRIC_INVOKE_AGENT_DURATION, AGENT_BUCKETS)
        self.execute_tool = seconds(semconv.METRIC_EXECUTE_TOOL_DURATION)
        self.operation_duration = seconds(semconv.METRIC_OPERATION_DURATION)
        if names == "released":
            self.inference_duration = self.operation_duration
            self.first_chunk = seconds(semconv.METRIC_OPERATION_TIME_TO_FIRST_CHUNK)
            self.token_usage = tokens(semconv.METRIC_TOKEN_USAGE)
            return
        self.inference_duration = seconds(semconv.METRIC_INFERENCE_DURATION)
        self.first_chunk = seconds(semconv.METRIC_INFERENCE_TIME_TO_FIRST_CHUNK)
        self.operation_input = tokens(semconv.METRIC_INFERENCE_OPERATION_INPUT_TOKENS)
        self.operation_output = tokens(semconv.METRIC_INFERENCE_OPERATION_OUTPUT_TOKENS)
        self.usage: dict[str, Total] = {
            name: total(name, "{token}")
            for name in (
                semconv.METRIC_INFERENCE_INPUT_TOKENS,
                semconv.METRIC_INFERENCE_OUTPUT_TOKENS,
                semconv.METRIC_INFERENCE_CACHE_READ_TOKENS,
                semconv.METRIC_INFERENCE_CACHE_WRITE_TOKENS,
                semconv.METRIC_INFERENCE_REASONING_TOKENS,
            )
        }


_instruments: Instruments | None = None


def instruments() -> Instruments:
    """The instruments in force; by default on the global meter provider."""
    return _instruments or use_meter_provider(None)


def use_meter_provider(
    provider: MeterProvider | None, *, names: MetricNames = "newest"
) -> Instruments:
    """Make the instruments on this provider (None: the global one) from now on."""
    global _instruments  # noqa: PLW0603 - one process, one set of instruments
    meter = metrics.get_meter(
        "spanloom.telemetry", __version__, meter_provider=provider, schema_url=semconv.SCHEMA_URL
    )
    _instruments = Instruments(meter, names, Sums.of(provider))
    return _instruments


def record_model_call(call: ModelCall, *, model_label: str) -> None:
    """Record one model call in the vocabulary in force, and `agent_tokens_total`."""
    current = instruments()
    for kind, amount in (("input", call.input_tokens), ("output", call.output_tokens)):
        if amount:
            current.tokens.add(amount, {"model": model_label, "type": kind})
    attributes = _attributes(call)
    timed = attributes | ({semconv.ERROR_TYPE: call.error_type} if call.error_type else {})
    inference = call.operation in semconv.LLM_OPERATIONS
    duration = current.inference_duration if inference else current.operation_duration
    duration.record(call.seconds, timed)
    if call.time_to_first_chunk is not None:
        current.first_chunk.record(call.time_to_first_chunk, attributes)
    if current.names == "released":
        for kind, amount in (("input", call.input_tokens), ("output", call.output_tokens)):
            if amount is not None:
                current.token_usage.record(amount, attributes | {semconv.GEN_AI_TOKEN_TYPE: kind})
    elif inference:
        _record_usage(current, call, attributes, timed)


def _record_usage(
    current: Instruments,
    call: ModelCall,
    attributes: dict[str, str | int],
    timed: dict[str, str | int],
) -> None:
    """Counters count every inference, failed ones with 0 of unknown modality (conventions)."""
    for name, amount in (
        (semconv.METRIC_INFERENCE_INPUT_TOKENS, call.input_tokens),
        (semconv.METRIC_INFERENCE_OUTPUT_TOKENS, call.output_tokens),
    ):
        modality = "unknown" if amount is None else "text"
        current.usage[name].add(amount or 0, attributes | {semconv.GEN_AI_TOKEN_MODALITY: modality})
    for name, amount in (
        (semconv.METRIC_INFERENCE_CACHE_READ_TOKENS, call.cache_read),
        (semconv.METRIC_INFERENCE_CACHE_WRITE_TOKENS, call.cache_write),
        (semconv.METRIC_INFERENCE_REASONING_TOKENS, call.reasoning),
    ):
        if amount:
            current.usage[name].add(amount, attributes | {semconv.GEN_AI_TOKEN_MODALITY: "text"})
    if call.input_tokens is not None:
        current.operation_input.record(call.input_tokens, timed)
    if call.output_tokens is not None:
        current.operation_output.record(call.output_tokens, timed)


def _attributes(call: ModelCall) -> dict[str, str | int]:
    wanted: tuple[tuple[str, str | int | None], ...] = (
        (semconv.GEN_AI_OPERATION_NAME, call.operation),
        (semconv.GEN_AI_PROVIDER_NAME, call.provider),
        (semconv.GEN_AI_REQUEST_MODEL, call.request_model),
        (semconv.GEN_AI_RESPONSE_MODEL, call.response_model),
        (semconv.SERVER_ADDRESS, call.server_address),
        (semconv.SERVER_PORT, call.server_port),
    )
    return {key: value for key, value in wanted if value is not None}
