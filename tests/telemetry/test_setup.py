import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.telemetry.live import Receiver, Script, attributes

TRACED = """
from spanloom.telemetry import get_logger, llm_call, setup, step
telemetry = setup("from-argument", service_version="9")
with step("work"), llm_call("m", provider="openai") as call:
    call.usage(input_tokens=2, output_tokens=1)
    get_logger("script").info("said", text="你好")
"""


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_a_script_needs_one_call(script: Script, receiver: Receiver) -> None:
    """Traces, logs and metrics arrive without a flush: leaving the program sends them."""
    done = script.run(TRACED, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)

    assert [line["event"] for line in lines(done)] == ["said", "step", "step"]
    assert sorted(span.name for span in receiver.spans) == ["chat m", "work"]
    assert {log.body.string_value for log in receiver.logs} == {"said", "step"}
    names = {metric.name for metric in receiver.metrics}
    assert {"agent_tokens_total", "gen_ai.client.inference.duration"} <= names
    assert receiver.resources[0]["service.name"] == "from-argument"
    assert receiver.resources[0]["service.version"] == "9"


def test_standard_variables_win_over_arguments(script: Script, receiver: Receiver) -> None:
    """Name, resource, sampler, endpoint, headers and compression come from OTEL_*."""
    done = script.run(
        TRACED,
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{receiver.url}/v1/traces",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Basic%20abc",
        OTEL_SERVICE_NAME="from-environment",
        OTEL_RESOURCE_ATTRIBUTES="service.version=8,service.instance.id=i1,team=检索",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )

    assert {line["service.name"] for line in lines(done)} == {"from-environment"}
    (resource,) = receiver.resources
    assert resource["service.name"] == "from-environment"
    assert resource["service.version"] == "8"
    assert resource["service.instance.id"] == "i1"
    assert resource["team"] == "检索"
    assert receiver.requests[0]["authorization"] == "Basic abc"
    assert receiver.logs == []
    assert receiver.metrics == []


def test_the_sampler_is_the_standard_variables(script: Script, receiver: Receiver) -> None:
    """With OTEL_TRACES_SAMPLER=always_off no span leaves; logs still do, and say so."""
    done = script.run(
        TRACED, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_TRACES_SAMPLER="always_off"
    )

    (line,) = lines(done)
    assert int(line["trace_flags"], 16) & 1 == 0
    assert receiver.spans == []
    assert [log.body.string_value for log in receiver.logs] == ["said"]


def test_disabled_means_nothing_leaves(script: Script, receiver: Receiver) -> None:
    """OTEL_SDK_DISABLED leaves logs on stdout, and the program as it was."""
    done = script.run(TRACED, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SDK_DISABLED="true")

    (line,) = lines(done)
    assert line["event"] == "said"
    assert "trace_id" not in line
    assert receiver.requests == []


def test_grpc_is_used_when_asked_for(script: Script) -> None:
    """The protocol variable chooses the gRPC exporter where it is installed."""
    done = script.run(
        "from spanloom.telemetry.exporters import create_exporters\n"
        "from spanloom.telemetry import TelemetrySettings\n"
        "settings = TelemetrySettings.from_env()\n"
        "for signal in ('traces', 'metrics', 'logs'):\n"
        "    (made,) = create_exporters(signal, settings, print)\n"
        "    print(type(made).__module__)\n"
        "    made.shutdown()\n",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    )

    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert len(modules) == 3
    assert all(".grpc." in module for module in modules)


def test_an_unknown_exporter_is_a_sentence(script: Script) -> None:
    """A misspelt exporter is logged with what to do, and the program runs on."""
    done = script.run(
        TRACED,
        OTEL_TRACES_EXPORTER="jeager",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )

    assert done.returncode == 0
    assert lines(done)[0]["event"].startswith("no traces are exported by jeager: ")
    assert done.stderr == ""


def test_wrong_settings_are_said_once(script: Script) -> None:
    """A variable that cannot be read is a warning line; its default holds."""
    done = script.run(
        "from spanloom.telemetry import setup; print(setup('x').settings.trust[0])",
        SPANLOOM_TRUST="everyone",
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )

    warning, trust = done.stdout.strip().split("\n")
    assert json.loads(warning)["level"] == "warning"
    assert "SPANLOOM_TRUST='everyone' is ignored" in json.loads(warning)["event"]
    assert trust == "loopback"


@pytest.mark.parametrize(
    "variable",
    [
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4096",
        "OTEL_BLRP_MAX_QUEUE_SIZE=0",
        "OTEL_ATTRIBUTE_COUNT_LIMIT=many",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT=-5",
        "OTEL_METRICS_EXEMPLAR_FILTER=sometimes",
    ],
)
def test_a_standard_variable_the_sdk_refuses_is_said(
    script: Script, receiver: Receiver, variable: str
) -> None:
    """The SDK would raise; the program runs on, with the SDK's default, and says which."""
    name, _, value = variable.partition("=")
    done = script.run(TRACED, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **{name: value})

    assert done.stderr == ""
    (warning,) = [line["event"] for line in lines(done) if line["level"] == "warning"]
    assert warning.startswith("an OTEL_* variable is ignored: ")
    assert sorted(span.name for span in receiver.spans) == ["chat m", "work"]
    assert {log.body.string_value for log in receiver.logs} >= {"said", "step"}
    assert "agent_tokens_total" in {metric.name for metric in receiver.metrics}


def test_a_second_call_changes_nothing(script: Script, receiver: Receiver) -> None:
    """The first handle comes back with one warning, and no span is sent twice."""
    done = script.run(
        TRACED + "assert setup('again') is telemetry\n", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url
    )

    assert [line["event"] for line in lines(done) if line["level"] == "warning"] == [
        "telemetry is already set up in this process; the second call changes nothing"
    ]
    assert len(receiver.spans) == 2


def test_only_one_variable_is_set(script: Script) -> None:
    """`setup` touches OTEL_SEMCONV_STABILITY_OPT_IN, by setdefault, and nothing else."""
    program = (
        "import os\n"
        "before = dict(os.environ)\n"
        "from spanloom.telemetry import setup\n"
        "setup('x')\n"
        "changed = {k: v for k, v in os.environ.items() if before.get(k) != v}\n"
        "print(changed)\n"
    )
    quiet = dict.fromkeys(
        ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"), "none"
    )

    assert script.run(program, **quiet).stdout.strip() == (
        "{'OTEL_SEMCONV_STABILITY_OPT_IN': 'http'}"
    )
    chosen = script.run(program, OTEL_SEMCONV_STABILITY_OPT_IN="http/dup", **quiet)
    assert chosen.stdout.strip() == "{}"


def test_forked_children_report_for_themselves(script: Script, receiver: Receiver) -> None:
    """A process forked after setup sends its own spans under its own instance id."""
    done = script.run(
        "import os\n"
        "from spanloom.telemetry import setup, step\n"
        "telemetry = setup('x')\n"
        "with step('before'): pass\n"
        "child = os.fork()\n"
        "with step('child' if child == 0 else 'parent'): pass\n"
        "telemetry.force_flush(30)\n"
        "if child == 0: os._exit(0)\n"
        "os.waitpid(child, 0)\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert done.returncode == 0, done.stderr
    assert sorted(span.name for span in receiver.spans) == ["before", "child", "parent"]
    assert len({one["service.instance.id"] for one in receiver.resources}) == 2


def test_sending_imports_nothing(script: Script, receiver: Receiver) -> None:
    """A process forked while a thread imports has that module by halves, and waits for it."""
    done = script.run(
        "import sys\n"
        "from spanloom.telemetry import get_logger, setup, step\n"
        "telemetry = setup('x')\n"
        "with step('work'): get_logger('script').info('said')\n"
        "before = set(sys.modules)\n"
        "assert telemetry.force_flush(30)\n"
        "print(sorted(set(sys.modules) - before))\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        SPANLOOM_INFLIGHT="off",
    )

    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert receiver.spans


class SilentServer:
    """Accepts every connection, reads, and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()
        for connection in self.accepted:
            connection.close()


@pytest.fixture(params=["silent", "closed"])
def dead_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    server = SilentServer()
    if request.param == "closed":
        server.close()
    yield server.url
    server.close()


def test_a_dead_backend_does_not_hold_up_the_end(script: Script, dead_backend: str) -> None:
    """Whether it refuses or hangs, leaving takes about the five seconds allowed, not minutes."""
    done = script.run(
        "import time\n" + TRACED + "time.sleep(1)\n"
        "started = time.monotonic()\n"
        "telemetry.shutdown(1.0)\n"
        "telemetry.shutdown(1.0)\n"
        "print(time.monotonic() - started)\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=dead_backend,
    )

    assert done.returncode == 0, done.stderr
    *logged, took = done.stdout.strip().split("\n")
    assert float(took) < 25  # 1 s allowed; the SDK's own bound is 3 times 30 s
    events = [json.loads(line) for line in logged]
    complaints = [one for one in events if one["logger"].startswith("opentelemetry.")]
    assert len(complaints) <= 1


def test_sigterm_flushes_a_plain_script(script: Script, receiver: Receiver) -> None:
    """Without a server of its own, SIGTERM still sends what waits, and ends as SIGTERM does."""
    done = script.run(
        TRACED + "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(30)\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
        OTEL_BSP_SCHEDULE_DELAY="60000",
    )

    assert done.returncode == -15
    assert sorted(span.name for span in receiver.spans) == ["chat m", "work"]


def test_what_utf8_cannot_carry_does_not_cost_the_batch(script: Script, receiver: Receiver) -> None:
    """A lone surrogate from a model's broken output is escaped, and its neighbours arrive."""
    done = script.run(
        "from spanloom.telemetry import get_logger, setup, step, tool\n"
        "setup('x')\n"
        "broken = '半个 \\ud83d'\n"
        "with step('neighbour'), tool(broken), step('inner', note=broken):\n"
        "    get_logger('script').info(broken, value=broken, number=2**80)\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert lines(done)[0]["event"] == "半个 \ud83d"
    names = [span.name for span in receiver.spans]
    assert sorted(names) == sorted(["neighbour", "inner", "execute_tool 半个 \\ud83d"])
    bodies = [log.body.string_value for log in receiver.logs]
    assert "半个 \\ud83d" in bodies
    assert len(bodies) == 4


def test_exceptions_of_other_instrumentations_are_redacted(
    script: Script, receiver: Receiver
) -> None:
    """Spans that are not ours lose secrets on the way out too."""
    done = script.run(
        "from opentelemetry import trace\n"
        "from spanloom.telemetry import setup\n"
        "setup('x')\n"
        "try:\n"
        "    with trace.get_tracer('theirs').start_as_current_span('theirs'):\n"
        "        raise ValueError('postgres://u:hunter22@db/x')\n"
        "except ValueError: pass\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert done.returncode == 0, done.stderr
    (span,) = receiver.spans
    assert "hunter22" not in str(span)
    assert attributes(span.events[0])["exception.message"] == "postgres://[REDACTED]@db/x"


def test_providers_that_are_there_already_are_used(script: Script, tmp_path: Path) -> None:
    """Under another set-up our spans go to its provider instead of a second one."""
    done = script.run(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "kept = InMemorySpanExporter()\n"
        "provider = TracerProvider()\n"
        "provider.add_span_processor(SimpleSpanProcessor(kept))\n"
        "trace.set_tracer_provider(provider)\n"
        "from spanloom.telemetry import setup, step\n"
        "telemetry = setup('x')\n"
        "with step('ours'): pass\n"
        "assert telemetry.tracer_provider is provider\n"
        "assert [span.name for span in kept.get_finished_spans()] == ['ours']\n",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )

    assert done.returncode == 0, done.stderr
    assert [line for line in lines(done) if line["level"] != "info"] == [], "nothing is overridden"


def test_a_failed_request_is_one_exception_event(script: Script, receiver: Receiver) -> None:
    """The event stands on the HTTP span that failed; the tool around it has status only."""
    done = script.run(
        "import httpx2\n"
        "from spanloom.telemetry import setup, step, tool\n"
        "setup('x')\n"
        "try:\n"
        "    with step('node'), tool('fetch'):\n"
        "        httpx2.get('http://127.0.0.1:9/')\n"
        "except httpx2.ConnectError: pass\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert done.returncode == 0, done.stderr
    events = {span.name: len(span.events) for span in receiver.spans}
    assert events == {"GET": 1, "execute_tool fetch": 0, "node": 0}
    assert {span.status.code for span in receiver.spans} == {2}


def test_after_shutdown_lines_go_on_without_complaint(script: Script, receiver: Receiver) -> None:
    """What is logged and traced after the end is written to stdout and costs nothing else."""
    done = script.run(
        TRACED + "telemetry.shutdown()\nwith step('late'): get_logger('script').info('late')\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert [line["event"] for line in lines(done)] == ["said", "step", "step", "late", "step"]
    assert len(receiver.spans) == 2


def test_exporting_is_never_traced(script: Script, receiver: Receiver) -> None:
    """The exporters' own requests make no spans and carry no trace context."""
    done = script.run(
        TRACED + "telemetry.force_flush()\ntelemetry.force_flush()\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
    )

    assert done.returncode == 0, done.stderr
    assert len(receiver.spans) == 2
    assert not [request for request in receiver.requests if "traceparent" in request]


def test_instrumenting_a_serving_app_is_said(script: Script) -> None:
    """FastAPI has built its layers by then: a warning instead of half a trace."""
    done = script.run(
        "from fastapi import FastAPI\n"
        "from spanloom.telemetry import setup\n"
        "app = FastAPI(title='late')\n"
        "app.middleware_stack = app.build_middleware_stack()\n"
        "setup('x').instrument_fastapi(app)\n",
        OTEL_SDK_DISABLED="true",
    )

    (line,) = lines(done)
    assert (line["level"], line["event"]) == (
        "warning",
        "late serves already: its requests are not traced",
    )


def test_importing_stays_light(script: Script) -> None:
    """The library pulls in neither LangGraph, nor FastAPI, nor gRPC by itself."""
    done = script.run(
        "import sys, spanloom.telemetry\n"
        "heavy = {'langgraph', 'langchain_core', 'fastapi', 'grpc', 'pydantic', 'httpx2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )

    assert done.stdout.strip() == "[]", done.stderr
