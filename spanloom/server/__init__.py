"""The embedded backend: OTLP in, Jaeger's API, our own API and the drill-down page out."""
