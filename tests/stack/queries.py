"""What the backends are asked in these tests, with the answers as sets."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2

T = TypeVar("T")

# One for all, or each call would load the system's certificates; without connections kept open,
# because programs are stopped here.
_client = httpx2.Client(
    limits=httpx2.Limits(max_keepalive_connections=0), timeout=60, trust_env=False
)

SHOWN_S = 90
"""Longest wait for something to appear: retries wait up to 30 s on a busy machine."""


def eventually(look: Callable[[], T], is_right: Callable[[T], bool], what: str) -> T:
    """Look until it is right; what was seen last is in the error."""
    end = time.monotonic() + SHOWN_S
    while True:
        try:
            seen: Any = look()
        except (httpx2.HTTPError, json.JSONDecodeError) as exc:
            seen = exc
        else:
            if is_right(seen):
                return seen
        if time.monotonic() > end:
            raise AssertionError(f"{what}: {str(seen)[:2_000]}")
        time.sleep(0.5)


def jaeger_trace(url: str, trace_id: str) -> dict[str, Any] | None:
    """One trace in Jaeger's own JSON, None where it has none."""
    answer = _client.get(f"{url}/api/traces/{trace_id}")
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["data"][0]
    return found


def jaeger_span_ids(url: str, service: str, *, limit: int = 20_000) -> list[str]:
    """Every span of a service's newest traces, as often as Jaeger has it."""
    answer = _client.get(
        f"{url}/api/traces",
        params={"service": service, "limit": limit, "lookback": "2d"},
    )
    answer.raise_for_status()
    return [span["spanID"] for trace in answer.json()["data"] for span in trace["spans"]]


def jaeger_services(url: str) -> set[str]:
    """Names of all services that have spans."""
    return set(_client.get(f"{url}/api/services").json()["data"] or [])


def prometheus(url: str, query: str) -> list[dict[str, Any]]:
    """An instant query's series."""
    answer = _client.get(f"{url}/api/v1/query", params={"query": query})
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def prometheus_value(url: str, query: str) -> float:
    """The only value of a query; NaN where there is none."""
    found = prometheus(url, query)
    assert len(found) <= 1, found
    return float(found[0]["value"][1]) if found else float("nan")


def prometheus_exemplars(url: str, query: str) -> list[dict[str, Any]]:
    """Every exemplar of a query's series in the last two hours, with its series' labels."""
    now = time.time()
    answer = _client.get(
        f"{url}/api/v1/query_exemplars",
        params={"query": query, "start": now - 7_200, "end": now + 60},
    )
    answer.raise_for_status()
    return [
        {**exemplar, "series": series["seriesLabels"]}
        for series in answer.json()["data"]
        for exemplar in series["exemplars"]
    ]


def loki_entries(url: str, query: str, *, hours: float = 30) -> list[tuple[str, dict[str, str]]]:
    """Lines with their labels and structured metadata, up to 5,000."""
    now = time.time_ns()
    answer = _client.get(
        f"{url}/loki/api/v1/query_range",
        params={
            "query": query,
            "limit": 5_000,
            "start": now - int(hours * 3600e9),
            "end": now + 60_000_000_000,
        },
    )
    answer.raise_for_status()
    found: list[tuple[str, dict[str, str]]] = []
    for stream in answer.json()["data"]["result"]:
        found += [(value[1], stream["stream"]) for value in stream["values"]]
    return found


def loki_lines(url: str, service: str) -> list[str]:
    """Every line of a service."""
    return [line for line, _ in loki_entries(url, f'{{service_name="{service}"}}')]


def own_metrics(url: str, having: str = "") -> dict[str, float]:
    """The Collector's own metrics summed over their labels' values, by name.

    `having`: of those series only whose labels, as they are written, have this among them.
    """
    text = _client.get(url).text
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#") and having in line:
            name, _, value = line.replace("} ", "}\0").rpartition("\0" if "}" in line else " ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found
