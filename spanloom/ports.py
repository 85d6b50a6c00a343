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
JAEGER_OTLP_HTTP: Final = 14318
"""The same over HTTP."""
JAEGER_QUERY_GRPC: Final = 16685
"""Jaeger's query API over gRPC."""
JAEGER_METRICS: Final = 8887
"""Jaeger's own metrics; 8888 by default, which the Collector owns."""
JAEGER_HEALTH: Final = 13134
"""Jaeger's health; 13133 by default, which the Collector owns."""
REAP_OTLP_HTTP: Final = 4319
"""Where `spanloom reap` takes in-flight events from the Collector, by OTLP over HTTP."""
REAP_HTTP: Final = 4320
"""`/health` and `/metrics` of `spanloom reap`."""
COLLECTOR_PROMETHEUS: Final = 8889
"""Collector's Prometheus exporter."""
COLLECTOR_METRICS: Final = 8888
"""Collector's own metrics."""
COLLECTOR_HEALTH: Final = 13133
"""Collector's health."""
PROMETHEUS: Final = 9090
LOKI: Final = 3100
LOKI_GRPC: Final = 9095
GRAFANA: Final = 3000
POSTGRES: Final = 5432
"""PostgreSQL, for the sessions of the observed service."""
