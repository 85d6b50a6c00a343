"""The numbers: `agent_*` for Prometheus with exemplars, and the GenAI metrics over OTLP.

Every measurement goes both ways: to prometheus_client, read by `render()`, and to OpenTelemetry
instruments of the same names, so that a backend without Prometheus has them too (the Collector
leaves `agent_*` out of its Prometheus pipeline: no series exists twice). Nothing here raises.

Several worker processes: set PROMETHEUS_MULTIPROC_DIR to an empty folder before the first of them
starts. prometheus_client reads it while it is imported, so setting it later has no effect.
`render()` then sums over the workers, dead ones included; gauges count living ones only, and
exemplars are those of all workers (`spanloom.telemetry.workers`).
"""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import prometheus_client
from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.exposition import choose_encoder

from spanloom import semconv
from spanloom.telemetry import genai_metrics
from spanloom.telemetry.usage import Bill

if TYPE_CHECKING:
    from spanloom.telemetry.workers import SharedMetrics

_logger: Final = logging.getLogger(__name__)

LATENCY_BUCKETS: Final = genai_metrics.LATENCY_BUCKETS
"""Upper bounds of `agent_latency_seconds`, in seconds."""
OTHER: Final = "other"
"""Label value in place of those that come after the first `MAX_LABEL_VALUES`."""
MAX_LABEL_VALUES: Final = 100
NOBODY: Final = "none"
"""Label value where a model was called outside of any graph node, or of any tool."""
_MAX_LABEL_LENGTH: Final = 128
_FAILURES: Final = (
    semconv.OUTCOME_ERROR,
    semconv.OUTCOME_TIMEOUT,
    semconv.OUTCOME_CANCELLED,
)
_NO_BILL: Final = Bill()


def _shared_metrics() -> "SharedMetrics | None":
    """Where worker processes share their numbers; created here, as prometheus_client does not."""
    path = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not path:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError:
        # The metric objects below would fail to open their files, and with them the import.
        values.ValueClass = values.MutexValue
        _logger.warning("PROMETHEUS_MULTIPROC_DIR %s cannot be used: metrics stay per worker", path)
        return None
    if values.ValueClass is values.MutexValue:
        _logger.warning("PROMETHEUS_MULTIPROC_DIR was set too late: metrics stay per worker")
        return None
    # Needs file locks, which Windows has not; a single process needs none of it.
    from spanloom.telemetry.workers import SharedMetrics  # noqa: PLC0415

    shared = SharedMetrics(Path(path))
    shared.join()
    return shared


_shared: Final = _shared_metrics()

_requests: Final = Counter(semconv.PROM_REQUESTS, "Requests answered.", ["status", "endpoint"])
_latency: Final = Histogram(
    semconv.PROM_LATENCY_SECONDS, "Time to answer.", ["endpoint"], buckets=LATENCY_BUCKETS
)
_tool_calls: Final = Counter(semconv.PROM_TOOL_CALLS, "Tool calls.", ["tool", "status"])
_tokens: Final = Counter(semconv.PROM_TOKENS, "Tokens of LLM calls.", ["model", "type"])
_llm_calls: Final = Counter(semconv.PROM_LLM_CALLS, "Model calls.", ["model", "status"])
_cost: Final = Counter(semconv.PROM_COST_USD, "US dollars for model calls with a price.", ["model"])
_step_tokens: Final = Counter(
    semconv.PROM_STEP_TOKENS,
    "Tokens by the innermost graph node and tool around the model call.",
    ["node", "tool", "type"],
)
_step_cost: Final = Counter(
    semconv.PROM_STEP_COST_USD,
    "US dollars by the innermost graph node and tool around the model call.",
    ["node", "tool"],
)
_active: Final = Gauge(
    semconv.PROM_ACTIVE_REQUESTS, "Requests in progress.", multiprocess_mode="livesum"
)
_open_spans: Final = Gauge(
    semconv.PROM_OPEN_SPANS, "Sampled spans that have not ended.", multiprocess_mode="livesum"
)
_overdue_spans: Final = Gauge(
    semconv.PROM_OVERDUE_SPANS, "Spans open past their deadline.", multiprocess_mode="livesum"
)
_oldest_open_span: Final = Gauge(
    semconv.PROM_OLDEST_OPEN_SPAN,
    "When the oldest span that has not ended began, Unix time; +Inf where there is none.",
    multiprocess_mode="livemin",
)
_spool_waiting: Final = Gauge(
    semconv.PROM_SPOOL_WAITING,
    "Spans and log records in the spool that the backend has not taken yet.",
    ["signal"],
    multiprocess_mode="livesum",
)
if _shared is not None:
    # A killed worker may have had this process id, and its files.
    _active.set(0)
    _open_spans.set(0)
    _overdue_spans.set(0)
_oldest_open_span.set(math.inf)


class _Children:
    """The children of a counter, kept: to look one up takes longer than to count.

    As many as the counter keeps itself, which `_Labels` bounds.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._kept: dict[tuple[str, ...], Counter] = {}

    def __call__(self, *labels: str) -> Counter:
        """The child with these label values, in the order of the counter's label names."""
        child = self._kept.get(labels)
        if child is None:
            child = self._kept[labels] = self._counter.labels(*labels)
        return child


_requests_of: Final = _Children(_requests)
_tool_calls_of: Final = _Children(_tool_calls)
_tokens_of: Final = _Children(_tokens)
_llm_calls_of: Final = _Children(_llm_calls)
_cost_of: Final = _Children(_cost)
_step_tokens_of: Final = _Children(_step_tokens)
_step_cost_of: Final = _Children(_step_cost)


class _Labels:
    """Keeps one label's distinct values below a limit, whatever callers and models invent."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, value: str | None) -> str:
        text = str(value or "unknown")[:_MAX_LABEL_LENGTH]
        if text in self._seen:
            return text
        if len(self._seen) >= MAX_LABEL_VALUES:
            return OTHER
        self._seen.add(text)
        return text


_endpoint: Final = _Labels()
_status: Final = _Labels()
_tool: Final = _Labels()
_tool_status: Final = _Labels()
_workflow: Final = _Labels()
_agent: Final = _Labels()
_model: Final = _Labels()
_llm_status: Final = _Labels()
_node: Final = _Labels()
_known: Final[set[tuple[Counter, str]]] = set()


def current_exemplar() -> dict[str, str] | None:
    """Ids of the current span, if it is sampled: a link to a trace that is not kept is dead."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return {
        semconv.LOG_TRACE_ID: trace.format_trace_id(context.trace_id),
        semconv.LOG_SPAN_ID: trace.format_span_id(context.span_id),
    }


@contextlib.contextmanager
def _never_raises() -> Iterator[None]:
    try:
        yield
    except Exception:  # telemetry never breaks the application
        _logger.debug("a measurement was not recorded", exc_info=True)


def _count(counter: Counter, amount: float, exemplar: dict[str, str] | None) -> None:
    try:
        counter.inc(amount, exemplar)
    except ValueError:  # the exemplar is refused, the number is not
        counter.inc(amount)


def _begin_at_zero(counter: Counter, name: str, statuses: tuple[str, ...]) -> None:
    """Show the failures of a model or tool as 0 before the first.

    A series that begins at 1 has not increased, to Prometheus: an alert would miss the first.
    """
    if (counter, name) not in _known:
        _known.add((counter, name))
        for status in statuses:
            counter.labels(name, status)


def record_request(endpoint: str, status: str, seconds: float) -> None:
    """Count one answered request; `endpoint` is the route, `status` the HTTP code or outcome."""
    with _never_raises():
        endpoint = _endpoint(endpoint)
        status = _status(status)
        exemplar = current_exemplar()
        _count(_requests_of(status, endpoint), 1, exemplar)
        if not seconds >= 0:  # NaN too: one would make the whole exposition unreadable
            return
        histogram = _latency.labels(endpoint=endpoint)
        try:
            histogram.observe(seconds, exemplar)
        except ValueError:
            histogram.observe(seconds)
        instruments = genai_metrics.instruments()
        instruments.requests.add(1, {"status": status, "endpoint": endpoint})
        instruments.latency.record(seconds, {"endpoint": endpoint})


class active_requests:  # noqa: N801 - used like contextlib's lower-case managers
    """`with active_requests():` counts a request as in progress while the body runs."""

    __slots__ = ()

    def __enter__(self) -> None:
        with _never_raises():
            _active.inc()
            genai_metrics.instruments().active_requests.add(1)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _never_raises():
            _active.dec()
            genai_metrics.instruments().active_requests.add(-1)


def record_llm(
    *,
    provider: str | None,
    request_model: str | None,
    response_model: str | None,
    operation: str,
    seconds: float,
    input_tokens: int | None,
    output_tokens: int | None,
    time_to_first_chunk: float | None = None,
    error_type: str | None = None,
    status: str = semconv.OUTCOME_OK,
    bill: Bill = _NO_BILL,
    server_address: str | None = None,
    server_port: int | None = None,
    cache_read: int | None = None,
    cache_write: int | None = None,
    reasoning: int | None = None,
) -> None:
    """Measure one model call (`chat`, `text_completion`, `generate_content` or `embeddings`).

    Input tokens include cached ones and output tokens include reasoning; the subsets come beside
    them. None for a count says that the provider did not report it. `status` is the outcome, or
    `semconv.STATUS_RATE_LIMIT`; `bill` is what it cost, and for whom.
    """
    with _never_raises():
        model = _model(response_model or request_model)
        exemplar = current_exemplar()
        if input_tokens:
            _count(_tokens_of(model, "input"), input_tokens, exemplar)
        if output_tokens:
            _count(_tokens_of(model, "output"), output_tokens, exemplar)
        # The model as it was asked for: who is refused learns of no other name.
        asked = _model(request_model or response_model)
        status = _llm_status(status)
        _begin_at_zero(_llm_calls, asked, (*_FAILURES, semconv.STATUS_RATE_LIMIT))
        _count(_llm_calls_of(asked, status), 1, exemplar)
        genai_metrics.instruments().llm_calls.add(1, {"model": asked, "status": status})
        _record_bill(model, bill, input_tokens, output_tokens, exemplar)
        genai_metrics.record_model_call(
            genai_metrics.ModelCall(
                provider=provider,
                request_model=None if request_model is None else _model(request_model),
                response_model=None if response_model is None else _model(response_model),
                operation=operation,
                seconds=seconds,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                time_to_first_chunk=time_to_first_chunk,
                error_type=error_type,
                server_address=server_address,
                server_port=server_port,
                cache_read=cache_read,
                cache_write=cache_write,
                reasoning=reasoning,
            ),
            model_label=model,
        )


def _record_bill(
    model: str,
    bill: Bill,
    input_tokens: int | None,
    output_tokens: int | None,
    exemplar: dict[str, str] | None,
) -> None:
    node, tool = _node(bill.node or NOBODY), _tool(bill.tool or NOBODY)
    instruments = genai_metrics.instruments()
    for kind, amount in (("input", input_tokens), ("output", output_tokens)):
        if amount:
            _count(_step_tokens_of(node, tool, kind), amount, exemplar)
            instruments.step_tokens.add(amount, {"node": node, "tool": tool, "type": kind})
    if bill.cost_usd is not None:
        dollars = float(bill.cost_usd)
        _count(_cost_of(model), dollars, exemplar)
        _count(_step_cost_of(node, tool), dollars, exemplar)
        instruments.cost.add(dollars, {"model": model})
        instruments.step_cost.add(dollars, {"node": node, "tool": tool})


def record_tool(*, tool: str, status: str, seconds: float, error_type: str | None = None) -> None:
    """Measure one tool call; `status` is its outcome (`semconv.OUTCOME_*`)."""
    with _never_raises():
        tool = _tool(tool)
        status = _tool_status(status)
        _begin_at_zero(_tool_calls, tool, _FAILURES)
        _count(_tool_calls_of(tool, status), 1, current_exemplar())
        instruments = genai_metrics.instruments()
        instruments.tool_calls.add(1, {"tool": tool, "status": status})
        instruments.execute_tool.record(
            seconds, _named(semconv.GEN_AI_TOOL_NAME, tool, semconv.OP_EXECUTE_TOOL, error_type)
        )


def record_workflow(*, name: str, seconds: float, error_type: str | None = None) -> None:
    """Measure one graph run."""
    with _never_raises():
        genai_metrics.instruments().invoke_workflow.record(
            seconds,
            _named(
                semconv.GEN_AI_WORKFLOW_NAME,
                _workflow(name),
                semconv.OP_INVOKE_WORKFLOW,
                error_type,
            ),
        )


def record_agent(*, name: str, seconds: float, error_type: str | None = None) -> None:
    """Measure one agent run."""
    with _never_raises():
        genai_metrics.instruments().invoke_agent.record(
            seconds,
            _named(semconv.GEN_AI_AGENT_NAME, _agent(name), semconv.OP_INVOKE_AGENT, error_type),
        )


def record_operation(
    *,
    operation: str,
    seconds: float,
    provider: str | None = None,
    request_model: str | None = None,
    error_type: str | None = None,
) -> None:
    """Measure a GenAI operation that is no model call: retrieval, rerank."""
    with _never_raises():
        attributes: dict[str, str] = {semconv.GEN_AI_OPERATION_NAME: operation}
        if provider:
            attributes[semconv.GEN_AI_PROVIDER_NAME] = provider
        if request_model:
            attributes[semconv.GEN_AI_REQUEST_MODEL] = _model(request_model)
        if error_type:
            attributes[semconv.ERROR_TYPE] = error_type
        genai_metrics.instruments().operation_duration.record(seconds, attributes)


def _named(key: str, name: str, operation: str, error_type: str | None) -> dict[str, str]:
    attributes = {semconv.GEN_AI_OPERATION_NAME: operation, key: name}
    if error_type:
        attributes[semconv.ERROR_TYPE] = error_type
    return attributes


def show_open_spans(*, count: int, overdue: int, oldest: float | None) -> None:
    """Show what is in flight in this process; `oldest` is when its span began, in Unix seconds."""
    with _never_raises():
        _open_spans.set(count)
        _overdue_spans.set(overdue)
        _oldest_open_span.set(math.inf if oldest is None else oldest)


def show_spool(signal: str, waiting: int) -> None:
    """Show how much of a signal this process has in the spool and the backend not yet."""
    with _never_raises():
        _spool_waiting.labels(signal=signal).set(waiting)


def render(accept: str) -> tuple[bytes, str]:
    """All metrics in the format an `Accept` header asks for: body, content type.

    Exemplars exist in OpenMetrics (`application/openmetrics-text`) only. With worker processes
    their counters and histograms are added up. OSError if their folder cannot be read.
    """
    registry = prometheus_client.REGISTRY if _shared is None else _shared.registry()
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def mark_this_process_dead() -> None:
    """Take this worker's gauges out of the sum; called at exit."""
    if _shared is not None:
        with _never_raises():
            _shared.leave()
