"""All scenarios by name, as in `scoring.card`."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from scoring.inside import endings, models, plain
from scoring.inside.bench import Bench, NotPossibleError
from scoring.inside.parts import chain, worker

Body = Callable[[Bench], Awaitable[None] | None]

_BODIES: dict[str, Body] = {
    "ainvoke": plain.ainvoke,
    "invoke": plain.invoke,
    "astream": plain.astream,
    "stream": plain.stream,
    "events": plain.events,
    "other_task": plain.other_task,
    "client_gone": plain.client_gone,
    "fan_out": plain.fan_out,
    "wide_fan_out": plain.wide_fan_out,
    "sub_graph": plain.sub_graph,
    "nested": plain.nested,
    "raises": endings.raises,
    "retry": endings.retry,
    "timeout": endings.timeout,
    "wait_for": endings.wait_for,
    "interrupt": endings.interrupted,
    "goto": plain.goto,
    "handoff": plain.handoff,
    "cached": plain.cached,
    "deferred": plain.deferred,
    "functional": plain.functional,
    "agent": models.agent,
    "threads": plain.threads,
    "concurrent": plain.concurrent,
    "openai": models.openai,
    "openai_cut": models.openai_cut,
    "hangs": endings.hangs,
}


def compile_early(bench: Bench) -> Any:
    """Make the graph that is there before the tracer is."""
    return chain({"early_bird": worker(bench, "early_bird")})


def body_of(name: str, early: Any) -> Body:
    """Return what the application does in a scenario."""
    if name == "compiled_before":
        return partial(_compiled_before, early)
    if name == "off":
        return _off
    return _BODIES[name]


async def _compiled_before(early: Any, bench: Bench) -> None:
    with bench.request():
        bench.expect(await early.ainvoke({"seen": []}, bench.config()), {"seen": ["early_bird"]})
    late = chain({"late_riser": worker(bench, "late_riser")})
    with bench.request():
        bench.expect(await late.ainvoke({"seen": []}, bench.config()), {"seen": ["late_riser"]})


async def _off(bench: Bench) -> None:
    """Run it once as ever and once without the tracer; has to be the last scenario."""
    with bench.request():
        await chain({"still_works": _nothing}).ainvoke({"seen": []}, bench.config())
    if bench.switch_off is None:
        raise NotPossibleError("the tracer cannot be switched off")
    bench.switch_off()
    before = bench.spans_of_tracer()
    with bench.request():
        result = await chain({"without": _nothing}).ainvoke({"seen": []}, bench.config())
    bench.expect(result, {"seen": []})
    bench.after_off = bench.spans_of_tracer() - before


async def _nothing(state: Any) -> Any:
    return {}
