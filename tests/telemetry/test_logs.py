import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from spanloom.telemetry.log_lines import plain, render
from spanloom.telemetry.logs import OncePerMinute, QuietPaths
from tests.telemetry.live import Script, child_environment

QUIET = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_both_ways_give_lines_of_one_shape(script: Script) -> None:
    """Structlog and stdlib lines have the same leading keys, context variables included."""
    done = script.run(
        "import logging, structlog\n"
        "from spanloom.telemetry import get_logger, setup, step\n"
        "early = get_logger('early')\n"
        "setup('svc')\n"
        "structlog.contextvars.bind_contextvars(session='会话')\n"
        "with step('work'):\n"
        "    early.info('one', n=1)\n"
        "    logging.getLogger('their.module').warning('two %d', 2, extra={'n': 2})\n"
        "early.debug('not shown')\n"
        "early.error('outside')\n",
        SPANLOOM_LOG_STEPS="off",
        **QUIET,
    )

    one, two, outside = lines(done)
    keys = [
        *("timestamp", "level", "event", "logger", "service.name"),
        *("trace_id", "span_id", "trace_flags"),
    ]
    assert list(one)[:8] == list(two)[:8] == keys
    assert (one["event"], one["level"], one["logger"], one["n"]) == ("one", "info", "early", 1)
    assert (two["event"], two["level"], two["n"]) == ("two 2", "warning", 2)
    assert two["logger"] == "their.module"
    assert one["session"] == two["session"] == "会话"
    assert one["span_id"] == two["span_id"]
    assert "trace_id" not in outside
    assert "会话" in done.stdout


def test_exceptions_are_structured_and_redacted(script: Script) -> None:
    """Type, message and stack are fields of the line, without the password."""
    done = script.run(
        "import logging\n"
        "from spanloom.telemetry import get_logger, setup\n"
        "setup('svc')\n"
        "for log in (get_logger('ours'), logging.getLogger('theirs')):\n"
        "    try:\n"
        "        raise ValueError('password=hunter22 错误')\n"
        "    except ValueError:\n"
        "        log.exception('failed')\n",
        **QUIET,
    )

    for line in lines(done):
        assert line["level"] == "error"
        assert line["exception.type"] == "ValueError"
        assert line["exception.message"] == "password=[REDACTED] 错误"
        assert "Traceback" in line["exception.stacktrace"]
    assert "hunter22" not in done.stdout


def test_the_level_is_a_setting(script: Script) -> None:
    """Below it nothing is written, by either way."""
    done = script.run(
        "import logging\n"
        "from spanloom.telemetry import get_logger, setup, step\n"
        "setup('svc')\n"
        "get_logger('a').info('no')\n"
        "logging.getLogger('b').info('no')\n"
        "with step('no'): pass\n"
        "get_logger('a').warning('yes')\n",
        SPANLOOM_LOG_LEVEL="warning",
        **QUIET,
    )

    assert [line["event"] for line in lines(done)] == ["yes"]


def test_handlers_of_others_are_taken_off_stdout(script: Script) -> None:
    """Lines appear once, though a library has installed its own handler; files are left alone."""
    done = script.run(
        "import io, logging, sys\n"
        "theirs = logging.getLogger('uvicorn.access')\n"
        "theirs.addHandler(logging.StreamHandler(sys.stdout)); theirs.propagate = False\n"
        "kept = io.StringIO()\n"
        "theirs.addHandler(logging.StreamHandler(kept))\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "from spanloom.telemetry import setup\n"
        "setup('svc')\n"
        "theirs.warning('GET /x?api_key=supersecret')\n"
        "assert kept.getvalue()\n",
        **QUIET,
    )

    (line,) = lines(done)
    assert line["event"] == "GET /x?api_key=[REDACTED]"


def test_an_exception_is_logged_with_the_span_it_was_raised_in(script: Script) -> None:
    """Also where the span of an earlier request is current still, ended: uvicorn's connections."""
    done = script.run(
        "import logging\n"
        "from opentelemetry import trace\n"
        "from spanloom.telemetry import current_trace_id, setup, step\n"
        "setup('svc')\n"
        "with step('earlier') as earlier: pass\n"
        "try:\n"
        "    with step('failing'):\n"
        "        failing = current_trace_id()\n"
        "        raise ValueError('no')\n"
        "except ValueError:\n"
        "    with trace.use_span(earlier): logging.getLogger('server').exception('failed')\n"
        "logging.getLogger('server').info(failing)\n",
        SPANLOOM_LOG_STEPS="off",
        **QUIET,
    )

    failed, said = lines(done)
    assert failed["trace_id"] == said["event"]


def test_a_log_processor_that_raises_costs_nothing(script: Script) -> None:
    """What somebody else hung on the logger provider may break; the line is written."""
    done = script.run(
        "import logging\n"
        "from spanloom.telemetry import get_logger, setup\n"
        "telemetry = setup('svc')\n"
        "class Broken:\n"
        "    def __getattr__(self, name): raise RuntimeError('broken processor')\n"
        "telemetry.logger_provider.add_log_record_processor(Broken())\n"
        "get_logger('ours').info('one')\n"
        "logging.getLogger('theirs').info('two')\n",
        **QUIET,
    )

    assert [line["event"] for line in lines(done)] == ["one", "two"]


def test_a_closed_stdout_does_not_break_the_program() -> None:
    """The reader of the pipe may leave: the program goes on and ends in order."""
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys\n"
                "from spanloom.telemetry import get_logger, setup\n"
                "setup('svc')\n"
                "for number in range(5000): get_logger('a').info('line', text='x' * 200)\n"
                "sys.stderr.write('done')\n"
            ),
        ],
        env=child_environment(**QUIET),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b"done"
    assert process.returncode == 0


def test_a_record_that_cannot_be_formatted_is_still_a_line(script: Script) -> None:
    """A wrong format string in a library gives a line, not a traceback on stderr."""
    done = script.run(
        "import logging\n"
        "from spanloom.telemetry import setup\n"
        "setup('svc')\n"
        "logging.getLogger('b').warning('%d of %d', 'x')\n",
        **QUIET,
    )

    (line,) = lines(done)
    assert "%d of %d" in line["event"]
    assert done.stderr == ""


class Awkward:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**100,
        b"bytes",
        {1: {2: {3}}},
        {"深": ["值"] * 3},
        object(),
        Awkward(),
        ValueError("x"),
        "\ud800",
        "line\nbreak \x1b[31m \u2028",
    ],
)
def test_any_value_renders_as_one_json_line(value: object) -> None:
    """Nothing that is logged can break the line or the request."""
    line = render({"event": "x", "value": value})

    assert "\n" not in line
    assert json.loads(line)["event"] == "x"


def test_a_value_that_contains_itself_renders() -> None:
    """A cycle ends at a depth."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle

    assert json.loads(render({"event": "x", "value": cycle}))["event"] == "x"


def test_plain_keeps_what_otlp_can_carry() -> None:
    """Numbers, text, lists and maps stay; the rest becomes text."""
    value = {"n": 1, "f": 0.5, "t": "文", "l": [1, None], "m": {"a": True}}

    assert plain(value) == value
    assert plain(2**63) == str(2**63)
    assert plain({"e": ValueError("x")}) == {"e": "x"}
    assert len(plain("x" * 100_000)) <= 16_384


def test_polled_paths_leave_no_access_lines() -> None:
    """A healthy health check is silent; a failing one, and every other path, is not."""
    quiet = QuietPaths(("/health",))

    def access(path: str, status: int) -> logging.LogRecord:
        made = record("uvicorn.access")
        made.args = ("127.0.0.1:1", "GET", path, "1.1", status)
        return made

    assert not quiet.filter(access("/health", 200))
    assert not quiet.filter(access("/health?full=1", 200))
    assert quiet.filter(access("/health", 503))
    assert quiet.filter(access("/healthy", 200))
    assert quiet.filter(record("uvicorn.access"))
    assert quiet.filter(record("other"))


def record(name: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "f", 1, "failed", (), None)


def test_exporters_complain_once_a_minute() -> None:
    """All exporters share one line a period, which counts those held back; others are free."""
    once = OncePerMinute(period_s=0.0)
    held = OncePerMinute(period_s=1000.0)
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

    assert [held.filter(record(exporter)) for _ in range(3)] == [True, False, False]
    assert not held.filter(record("opentelemetry.sdk._shared_internal"))
    assert held.filter(record("opentelemetry.context"))
    assert all(held.filter(record("my.module")) for _ in range(3))
    held._period_s = 0.0
    next_one = record(exporter)
    assert held.filter(next_one)
    assert next_one.held_back == 3
    assert once.filter(record(exporter))
