"""The alert rules as text: each tells whom to wake, what to do, and is tested both ways."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spanloom import semconv

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "prometheus/rules").glob("*.yml"))
CASES = sorted((ROOT / "prometheus/tests").glob("*.yml"))
RUNBOOK = "{{ $externalLabels.runbooks }}docs/runbook.md#"


def groups(file: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in groups(file) for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def cases() -> list[dict[str, Any]]:
    """Every expectation of an alert in the unit tests."""
    tests = [
        test for file in CASES for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
    ]
    return [case for test in tests for case in test.get("alert_rule_test", [])]


def runbook_sections() -> dict[str, str]:
    """Anchor, as GitHub makes it of a heading, and the text below it."""
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-"): body
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_fault_that_matters_has_an_alert() -> None:
    assert set(alerts()) == {
        *("AgentLatencyHigh", "AgentErrorRateHigh", "TokenBudgetExceeded", "CostBudgetExceeded"),
        *("LlmRateLimited", "ToolFailing", "SpanPastDeadline", "SpanOpenTooLong"),
        *("TelemetryDropped", "CollectorQueueNearFull", "CollectorExporterFailing"),
        *("CollectorDataLost", "CollectorRefusing", "TargetDown", "TargetMissing"),
        "BackendDiscarding",
    }
    names = [rule.get("alert") or rule["record"] for rule in rules()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    said = alert["annotations"]
    assert len(said["summary"]) > 10
    assert said["description"].endswith(".")
    assert said["runbook_url"] == f"{RUNBOOK}{name.lower()}"
    section = runbook_sections()[name.lower()]
    for part in ("**Look.**", "**Stop-gap", "asting.**"):
        assert part in section, f"{name} lacks {part}"


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert set(runbook_sections()) == {name.lower() for name in alerts()}


def test_links_inside_the_runbook_lead_somewhere() -> None:
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in runbook_sections()
    for file in re.findall(r"\]\(([\w/.-]+\.md)\)", text):
        assert (ROOT / "docs" / file).is_file()


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_is_tested_firing_and_not_firing(name: str) -> None:
    mine = [case for case in cases() if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in mine), f"{name} never fires in {CASES}"
    assert any(not case["exp_alerts"] for case in mine), f"{name} always fires in {CASES}"


def test_rules_ask_for_metrics_that_the_code_has() -> None:
    """A counter's `_total` and a histogram's parts are added by the client library."""
    known = {value for name, value in vars(semconv).items() if name.startswith("PROM_")}
    asked = {
        name
        for rule in rules()
        for name in re.findall(r"(?<![\w:])(?:agent|spanloom)_\w+", rule["expr"])
    }
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert stems <= known
    assert len(stems) > 5


def test_a_limit_is_read_by_an_alert() -> None:
    limits = {rule["record"] for rule in rules() if ":limit:" in rule.get("record", "")}
    for limit in limits:
        assert any(limit in alert["expr"] for alert in alerts().values()), limit
