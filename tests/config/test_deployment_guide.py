"""docs/deployment.md names what there is: settings, files, prices."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from service.settings import Settings
from spanloom.telemetry import pricing

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
MONTH_S = 30 * 24 * 3600


def test_every_setting_it_names_exists() -> None:
    known = {f"AGENT_{name.upper()}" for name in Settings.model_fields}

    named = set(re.findall(r"\bAGENT_[A-Z_]+", GUIDE))

    assert named
    assert named <= known


def test_every_link_leads_somewhere() -> None:
    """Files of this repository, and headings of the page."""
    headings = {
        f"#{re.sub(r'[^a-z0-9 -]', '', line.lower()).replace(' ', '-')}"
        for line in re.findall(r"^##+ (.+)$", GUIDE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        if target.startswith("#"):
            assert target in headings, target
        elif not target.startswith("https://"):
            assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize(
    "place", ["docker-compose.yml", "deploy/k8s", "deploy/cloudrun", "deploy/modal"]
)
def test_it_links_the_files_of_a_place_as_soon_as_there_are_some(place: str) -> None:
    """And names none that is not there."""
    assert (f"](../{place}" in GUIDE) == (ROOT / place).exists(), (
        f"link ../{place} in docs/deployment.md, in the section of its place"
    )


@pytest.mark.parametrize(
    ("provider", "model", "dollars"),
    [
        ("openai", "gpt-4o-mini", "0.0012"),
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", "0.0044"),
    ],
)
def test_what_a_query_costs_is_what_the_tables_say(provider: str, model: str, dollars: str) -> None:
    """4,000 → 1,000 tokens on the day the guide names, and 300,000 of them a month."""
    cost = pricing.cost_usd(
        provider=provider,
        model=model,
        input_tokens=4_000,
        output_tokens=1_000,
        at=datetime(2026, 11, 25, tzinfo=UTC),
    )

    assert cost == Decimal(dollars)
    assert f"{dollars}" in GUIDE
    assert f"{300_000 * cost:,.0f} USD" in GUIDE or f"{300_000 * cost:,.0f} with" in GUIDE


def test_the_cost_line_is_the_arithmetic_below_it() -> None:
    """Compose, Kubernetes, Cloud Run, Modal, from the rates the last table states."""
    line = next(line for line in GUIDE.splitlines() if line.startswith("| **cost**"))
    cloud_run = (2 * 0.000018 + 2 * 0.000002) * MONTH_S
    modal = (1 * 0.0000131 + 1.5 * 0.00000222) * MONTH_S

    assert re.findall(r"(\d+) USD", line) == [
        "50",
        f"{0.10 * 720 + 2 * 50:.0f}",
        f"{cloud_run - 5.22:.0f}",
        f"{modal:.0f}",
    ]
    assert f"= {cloud_run:.0f}, less 5" in GUIDE
    assert f"= {modal:.0f};" in GUIDE
    assert f"{0.7992 * 720:.0f} USD a month" in GUIDE
