import subprocess
import sys
from pathlib import Path

import pytest

from tests.telemetry.live import ROOT, Receiver, attributes, child_environment

APPLICATION = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class State(TypedDict):
    n: int

def add(state: State) -> State:
    return {"n": state["n"] + 1}

graph = StateGraph(State).add_node("add", add).add_edge(START, "add").add_edge("add", END)
print(graph.compile(name="plain").invoke({"n": 1}))
"""


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that says what opentelemetry-distro says: use the SDK's set-up."""
    info = tmp_path / "site" / "sdk_setup-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sdk-setup\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_configurator]\n"
        "configurator = opentelemetry.sdk._configuration:_OTelSDKConfigurator\n"
    )
    return info.parent


def test_opentelemetry_instrument_traces_a_graph_without_code(
    receiver: Receiver, distribution: Path, tmp_path: Path
) -> None:
    """Of an application that names neither OpenTelemetry nor Spanloom, run and node arrive."""
    application = tmp_path / "app.py"
    application.write_text(APPLICATION)
    environment = child_environment(
        PYTHONPATH=f"{distribution}:{ROOT}",
        OTEL_SERVICE_NAME="plain-app",
        OTEL_TRACES_EXPORTER="otlp",
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "opentelemetry-instrument"),
            sys.executable,
            str(application),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "{'n': 2}\n"), done.stderr
    spans = {span.name: span for span in receiver.spans}
    assert set(spans) == {"invoke_workflow plain", "invoke_node add"}
    run, node = spans["invoke_workflow plain"], spans["invoke_node add"]
    assert node.parent_span_id == run.span_id
    assert node.trace_id == run.trace_id
    assert attributes(node)["spanloom.outcome"] == "ok"
    assert {resource["service.name"] for resource in receiver.resources} == {"plain-app"}
    assert "gen_ai.invoke_workflow.duration" in {metric.name for metric in receiver.metrics}
