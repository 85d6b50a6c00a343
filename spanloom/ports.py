"""Every default port of ours and of the programs we configure, once.

The observed service's own ports live in `service/settings.py`. A test compares
each configuration file in the repository with these numbers.
"""

from typing import Final

OTLP_GRPC: Final = 4317
"""OTLP over gRPC: embedded backend or Collector."""
OTLP_HTTP: Final = 4318
"""OTLP over HTTP (`/v1/traces`, `/v1/logs`, `/v1/metrics`): embedded backend or Collector."""
QUERY_HTTP: Final = 16686
"""Query API and page: embedded backend or Jaeger."""
JAEGER_OTLP_GRPC: Final = 14317
"""Jaeger's OTLP port where it shares a host with the Collector, which owns 4317."""
REAP_OTLP_HTTP: Final = 4319
"""Where `spanloom reap` takes in-flight events from the Collector, by OTLP over HTTP."""
REAP_HTTP: Final = 4320
"""`/health` and `/metrics` of `spanloom reap`."""
COLLECTOR_PROMETHEUS: Final = 8889
"""Collector's Prometheus exporter."""
COLLECTOR_METRICS: Final = 8888
"""Collector's own metrics."""
PROMETHEUS: Final = 9090
LOKI: Final = 3100
GRAFANA: Final = 3000
