"""What a rate of requests takes: Collectors, memory, queue, storage, money. Only arithmetic.

Every field says where its value is from: *measured* (by the script named), *published* (by whom) or
*assumed* (put your own).
"""

import math
from dataclasses import dataclass
from typing import Final

from .plans import DECISION_WAIT_S, Budget
from .traffic import KINDS

HOURS_A_MONTH: Final = 730
SECONDS_A_DAY: Final = 86_400
GB: Final = 1e9


@dataclass(frozen=True)
class Measured:
    """What one request and one span cost; a second of CPU is of one core."""

    spans_per_request: float = 39.2
    """Measured by bench/telemetry_volume.py."""
    span_bytes: float = 436
    """OTLP protobuf; measured by bench/telemetry_volume.py."""
    span_bytes_gzip: float = 67
    """The same, compressed in the SDK's batches."""
    log_records_per_request: float = 20.0
    """Without a line a step; measured by bench/telemetry_volume.py."""
    log_bytes_gzip: float = 55
    agent_spans_per_cpu_second: float = 10_900
    """Collector that receives, redacts and balances; measured by bench/collector_load.py."""
    gateway_spans_per_cpu_second: float = 58_500
    """Collector that counts, waits and samples; measured by bench/collector_load.py."""
    waiting_span_bytes: float = 3_100
    """Gateway's memory per span that waits; measured by bench/collector_load.py."""
    seconds_to_decision: float = 13.0
    """Mean wait of a trace in a gateway, from its first span to a while after its root; from
    the simulation."""


@dataclass(frozen=True)
class Prices:
    """Assumed, in USD: the order of list prices of the large clouds in 2026. Put your own."""

    core_hour: float = 0.04
    gib_hour: float = 0.005
    ssd_gb_month: float = 0.10
    object_gb_month: float = 0.023
    zone_gb: float = 0.01
    """Traffic between zones, each direction; what is sent compressed is counted compressed."""


@dataclass(frozen=True)
class Storage:
    """ClickHouse behind Jaeger."""

    node_spans: float = 50_000
    """Spans a second that one node takes; published by Jaeger's maintainers for ClickHouse ("over
    50,000", machine not stated), not measured here."""
    disk_span_bytes: float = 75
    """From the same article: 10 million spans in 722 MiB."""
    replicas: int = 2
    days: int = 7
    node_cores: int = 8
    node_gib: int = 32


@dataclass(frozen=True)
class Plan:
    """What to provide for a rate of requests."""

    requests: float
    spans: float
    """A second, before sampling."""
    wire_mb: float
    """MB a second from the services, compressed."""
    agent_cores: float
    gateway_cores: float
    gateway_gib: float
    stored_share: float
    stored_spans: float
    kafka_partitions: int
    clickhouse_nodes: int
    stored_tb: float
    log_tb_a_day: float
    month_usd: float
    usd_per_million_requests: float


LOAD: Final = 0.6
"""Share of its cores that a Collector is planned to use: the rest is for bursts and a lost peer."""
PARTITION_MB: Final = 5.0
"""MB a second that is planned for one partition of Kafka; assumed, well below what brokers do."""
KAFKA_FROM_SPANS: Final = 200_000
"""Below this many stored spans a second the Collector's disk queue is buffer enough."""


def plan(requests: float, stored_spans: float, measured: Measured, prices: Prices,
         storage: Storage) -> Plan:  # fmt: skip
    """A plan for `requests` a second, of which storage takes `stored_spans` a second at most.

    What has to be kept whatever it takes (errors, timeouts, killed requests) may exceed that.
    """
    spans = requests * measured.spans_per_request
    budget = Budget(requests, measured.spans_per_request, stored_spans)
    ordinary, slow = budget.shares
    share = sum(
        kind.share * (slow if kind.name == "slow" else 1 if kind.evident else ordinary)
        for kind in KINDS
    )
    stored = spans * share
    waiting = spans * measured.seconds_to_decision
    agent_cores = spans / measured.agent_spans_per_cpu_second / LOAD
    gateway_cores = spans / measured.gateway_spans_per_cpu_second / LOAD
    gateway_gib = waiting * measured.waiting_span_bytes / LOAD / 2**30
    nodes = max(1, math.ceil(stored / storage.node_spans)) * storage.replicas
    stored_gb = stored * SECONDS_A_DAY * storage.days * storage.disk_span_bytes / GB
    logs_gb_a_day = (
        requests * measured.log_records_per_request * measured.log_bytes_gzip * SECONDS_A_DAY / GB
    )
    month = HOURS_A_MONTH * (
        prices.core_hour * (agent_cores + gateway_cores + nodes * storage.node_cores)
        + prices.gib_hour * (gateway_gib + nodes * storage.node_gib)
    )
    month += prices.ssd_gb_month * stored_gb * storage.replicas
    month += prices.object_gb_month * logs_gb_a_day * storage.days
    # Two of three senders are in another zone than the gateway that a trace belongs to.
    month += (
        2 / 3 * 2 * prices.zone_gb * spans * measured.span_bytes_gzip * (30 * SECONDS_A_DAY) / GB
    )
    return Plan(
        requests=requests,
        spans=spans,
        wire_mb=spans * measured.span_bytes_gzip / 1e6,
        agent_cores=agent_cores,
        gateway_cores=gateway_cores,
        gateway_gib=gateway_gib,
        stored_share=share,
        stored_spans=stored,
        kafka_partitions=(
            0
            if stored < KAFKA_FROM_SPANS
            else math.ceil(stored * measured.span_bytes / 1e6 / PARTITION_MB)
        ),
        clickhouse_nodes=nodes,
        stored_tb=stored_gb * storage.replicas / 1000,
        log_tb_a_day=logs_gb_a_day / 1000,
        month_usd=month,
        usd_per_million_requests=month / (requests * 30 * SECONDS_A_DAY) * 1e6,
    )


def longest_wait_gib(requests: float, measured: Measured) -> float:
    """Gateways' memory should roots stop coming: all traces wait for DECISION_WAIT_S."""
    waiting = requests * measured.spans_per_request * DECISION_WAIT_S
    return waiting * measured.waiting_span_bytes / 2**30
