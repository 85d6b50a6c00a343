"""promtool, as operators run it, over the rules and their unit tests."""

import subprocess
from pathlib import Path

from tests.stack.programs import ROOT, binary


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(binary("promtool")), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_configuration_and_its_rules_are_valid() -> None:
    done = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus/prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_each_alert_fires_and_stays_silent_when_it_should() -> None:
    files = sorted((ROOT / "prometheus/tests").glob("*.yml"))
    done = promtool("test", "rules", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(files) == 2


def test_a_limit_that_is_too_high_is_noticed(tmp_path: Path) -> None:
    """The unit tests can fail: with every limit a thousand times higher they do."""
    for folder in ("rules", "tests"):
        (tmp_path / folder).mkdir()
        for file in (ROOT / "prometheus" / folder).glob("*.yml"):
            text = file.read_text(encoding="utf-8").replace("expr: vector(", "expr: vector(1000 * ")
            (tmp_path / folder / file.name).write_text(text, encoding="utf-8")
    done = promtool("test", "rules", *sorted((tmp_path / "tests").glob("*.yml")))
    assert done.returncode != 0
    for alert in ("AgentLatencyHigh", "AgentErrorRateHigh", "CostBudgetExceeded"):
        assert f"alertname: {alert}" in done.stdout + done.stderr
