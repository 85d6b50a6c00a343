"""Judges what a scenario left behind. Pure; knows no tracer, only conventions to read it by.

A property that nothing can be said of does not apply: where a node has no span, whether that span
has the right parent is not asked, and the scenario is missed for the span alone.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .card import ERROR, FINE, Scenario, Unit
from .conventions import Reader
from .record import HARNESS_SCOPE, MODEL, Mark, Recording, Span

PROPERTIES: Final = {
    "application": "the application does what it does without a tracer",
    "spans": "each execution of a node or tool, and each model call, has a span",
    "parent": "calls to other services, and inner spans, are below the unit that made them",
    "current": "inside a node or tool its span, or one below it, is the current one",
    "outcome": "what failed or was cancelled is ERROR; a pause, a handoff or a success is not",
    "tokens": "tokens are on the model call, once; a cut stream keeps how much had come",
    "ended": "every span ends, no context leaks or fails to be detached, off is off",
    "trace": "all is in the trace of its request; a resumed run names the one that paused",
    "open": "work that has not ended can be seen",
}
_AT_MOST = 3
"""Problems of one property that are told."""


@dataclass(frozen=True)
class Verdict:
    """What came out of a scenario."""

    scenario: str
    applied: tuple[str, ...] = ()
    """Properties that applied, by name."""
    problems: Mapping[str, tuple[str, ...]] | None = None
    """What was wrong, by property; None if the scenario was skipped."""
    skipped: str | None = None

    @property
    def held(self) -> bool:
        """Whether it was run and everything held."""
        return self.problems == {}


def judge(scenario: Scenario, recording: Recording, reader: Reader) -> Verdict:
    """Say which properties applied to a scenario, and what was wrong."""
    if recording.skipped is not None:
        return Verdict(scenario.name, skipped=recording.skipped)
    case = _Case(scenario, recording, reader)
    found = {
        "application": list(case.application()),
        "spans": list(case.spans()),
        "parent": list(case.parent()) if case.can_have_parents else None,
        "current": list(case.current()) if case.seen_marks else None,
        "outcome": list(case.outcome()) if case.tracers else None,
        "tokens": list(case.tokens()) if case.says_tokens else None,
        "ended": list(case.ended()) if case.tracers else None,
        "trace": list(case.trace()) if case.tracers else None,
        "open": list(case.open()) if scenario.open_unit else None,
    }
    return Verdict(
        scenario.name,
        tuple(name for name, problems in found.items() if problems is not None),
        {name: _short(problems) for name, problems in found.items() if problems},
    )


def never_ran(scenario: Scenario, why: str) -> Verdict:
    """A scenario that took the process with it, or never came to an end."""
    return Verdict(scenario.name, ("application",), {"application": (why,)})


def _short(problems: Sequence[str]) -> tuple[str, ...]:
    counted = [f"{what} ({n} times)" if n > 1 else what for what, n in Counter(problems).items()]
    more = len(counted) - _AT_MOST
    return (*counted[:_AT_MOST], *([f"and {more} more"] if more > 0 else []))


class _Case:
    """One scenario and what it left, with what several properties ask for."""

    def __init__(self, scenario: Scenario, recording: Recording, reader: Reader) -> None:
        self.scenario = scenario
        self.recording = recording
        self.reader = reader
        self.tracers = [span for span in recording.spans if span.is_tracers]
        self.of = {
            name: [span for span in self.tracers if reader.is_of(span, name)]
            for name in scenario.units
        }
        """Spans of each unit, those of a model call apart."""
        self.models = [
            span
            for span in self.tracers
            if reader.is_model(span)
            and not any(map(reader.is_model, self._ancestors(span)))  # doubled ones count once
        ]
        self.seen_marks = [mark for mark in recording.marks if self.of.get(mark.unit)]

    def _ancestors(self, span: Span) -> Iterator[Span]:
        above = self.recording.above(span.id)
        next(above, None)
        yield from above

    def _unit_above(self, span: Span, but: str | None = None) -> str | None:
        """Nearest node or tool above a span."""
        for ancestor in self._ancestors(span):
            for name in self.scenario.units:
                if name != but and self.reader.is_of(ancestor, name):
                    return name
        return None

    # --- the properties: each yields what is wrong --------------------------------------------

    def application(self) -> Iterator[str]:
        if self.recording.failure is not None:
            yield self.recording.failure
            return
        wanted = {name: unit.marks for name, unit in self.scenario.units.items() if unit.marks}
        if self.scenario.calls and self.scenario.calls.marks:
            wanted[MODEL] = self.scenario.calls.marks
        ran = Counter(mark.unit for mark in self.recording.marks)
        if ran != Counter(wanted):
            yield f"bodies ran {dict(ran)} times, not {wanted}"

    def spans(self) -> Iterator[str]:
        for name, unit in self.scenario.units.items():
            if len(self.of[name]) < unit.times:
                yield f"{len(self.of[name])} of {unit.times} spans of {name}"
        calls = self.scenario.calls
        if calls and len(self.models) < calls.times:
            yield f"{len(self.models)} of {calls.times} spans of model calls"

    @property
    def can_have_parents(self) -> bool:
        model_marks = any(mark.unit == MODEL for mark in self.recording.marks)
        several = sum(map(bool, self.of.values())) > 1
        return several or bool(self.seen_marks) or (model_marks and bool(self.models))

    def parent(self) -> Iterator[str]:
        for mark in self.recording.marks:
            if mark.unit == MODEL and self.models:
                above = self._above_header(mark)
                if not any(map(self.reader.is_model, above)):
                    yield f"the request to the model {_hangs_off(above, mark)}"
        yield from self._misplaced_calls()
        yield from self._misplaced_units()
        calls = self.scenario.calls
        if calls and calls.inside and self.of[calls.inside]:
            for span in self.models:
                if (place := self._unit_above(span)) != calls.inside:
                    yield f"a model call is inside {place or 'no unit'}, not {calls.inside}"

    def _misplaced_units(self) -> Iterator[str]:
        """Units with too few spans in their place: what else has their name may be anywhere."""
        for name, unit in self.scenario.units.items():
            if unit.inside is None or self.of[unit.inside]:
                places = [self._unit_above(span, but=name) for span in self.of[name]]
                if places.count(unit.inside) < min(unit.times, len(places)):
                    wrong = next(place for place in places if place != unit.inside)
                    yield f"{name} is inside {wrong or 'no unit'}, not {unit.inside or 'none'}"

    def _misplaced_calls(self) -> Iterator[str]:
        owners: dict[str, set[str]] = {}
        for mark in self.seen_marks:
            above = self._above_header(mark)
            owner = self._owner(above, mark.unit)
            if owner is None:
                yield f"a call from {mark.unit} {_hangs_off(above, mark)}"
            else:
                owners.setdefault(mark.unit, set()).add(owner.id)
        yield from self._mixed_up(owners, "calls")

    def current(self) -> Iterator[str]:
        owners: dict[str, set[str]] = {}
        for mark in self.seen_marks:
            above = [] if mark.current is None else list(self.recording.above(mark.current))
            owner = self._owner(above, mark.unit)
            if owner is None:
                found = f"was {above[0].name!r}" if above else "was none that is known"
                yield f"current in {mark.unit} {found}"
            else:
                owners.setdefault(mark.unit, set()).add(owner.id)
        yield from self._mixed_up(owners, "bodies")

    def _mixed_up(self, owners: Mapping[str, set[str]], what: str) -> Iterator[str]:
        """Executions that share a span although there is a mark in each."""
        for name, ids in owners.items():
            unit: Unit = self.scenario.units[name]
            all_marked = sum(mark.unit == name for mark in self.seen_marks) == unit.marks
            if all_marked and unit.marks == unit.times and len(ids) < unit.times:
                yield f"{unit.times} {what} of {name} are in {len(ids)} spans"

    def _owner(self, above: Sequence[Span], unit: str) -> Span | None:
        return next((span for span in above if self.reader.is_of(span, unit)), None)

    def _above_header(self, mark: Mark) -> list[Span]:
        parts = mark.header.split("-")
        return list(self.recording.above(parts[2])) if len(parts) == 4 else []

    def outcome(self) -> Iterator[str]:
        for name, unit in self.scenario.units.items():
            spans = sorted(self.of[name], key=lambda span: span.start)
            failed = [span.status == "ERROR" for span in spans]
            if not spans:
                continue
            if unit.status == FINE and any(failed):
                yield f"{name} is ERROR"
            if unit.status == ERROR and not any(failed):
                yield f"{name} is {spans[-1].status}"
            if unit.then_fine and failed[-1]:
                yield f"{name} is ERROR at last"
        calls = self.scenario.calls
        if calls and calls.cut and self.models and self.models[-1].status != "ERROR":
            yield f"the model call that was cut is {self.models[-1].status}"
        outermost = [
            span for span in self.tracers if not any(a.is_tracers for a in self._ancestors(span))
        ]
        failed_runs = [span for span in outermost if span.status == "ERROR"]
        if self.scenario.run == ERROR and not failed_runs:
            statuses = sorted({span.status for span in outermost})
            yield f"the run is {', '.join(statuses)}"
        if self.scenario.run == FINE and failed_runs:
            yield f"the run ({failed_runs[0].name}) is ERROR"

    @property
    def says_tokens(self) -> bool:
        calls = self.scenario.calls
        return calls is not None and (calls.tokens is not None or calls.cut) and bool(self.models)

    def tokens(self) -> Iterator[str]:
        calls = self.scenario.calls
        if calls is None:
            return
        spans = [span for span in self.tracers if self.reader.is_model(span)]
        if calls.tokens is not None:
            said = [self.reader.tokens(span) for span in spans]
            said = [one for one in said if one != (None, None)]
            if said != [calls.tokens] * calls.times:
                yield f"(input, output) tokens are {said or 'nowhere'}, not {calls.tokens} each"
        if calls.cut and not any(self.reader.says_how_far(span) for span in spans):
            yield "nothing says how much of the cut stream had come"

    def ended(self) -> Iterator[str]:
        for span in self.tracers:
            if span.end is None:
                yield f"{span.name} never ended"
        yield from self.recording.leaks
        yield from self.recording.complaints
        if self.scenario.switched_off and self.recording.after_off:
            yield f"{self.recording.after_off} spans began after it was switched off"

    def trace(self) -> Iterator[str]:
        requests = self.recording.requests
        servers = [one for one in self.recording.spans if one.scope == HARNESS_SCOPE]
        for span in self.tracers:
            # what is made between requests, as when a graph is compiled, belongs to none
            during = any(one.start <= span.start <= (one.end or span.start) for one in servers)
            if during and span.trace not in requests:
                yield f"{span.name} is in another trace"
        trace_of = {span.id: span.trace for span in self.recording.spans}
        for mark in self.recording.marks:
            parts = mark.header.split("-")
            if len(parts) == 4 and parts[1] != mark.request:
                yield f"a call from {mark.unit} is in another trace"
            if mark.current in trace_of and trace_of[mark.current] != mark.request:
                yield f"current in {mark.unit} was a span of another trace"
        if self.scenario.resumed and len(requests) == self.scenario.requests:
            yield from self._resumed(requests[0], requests[1])

    def _resumed(self, paused: str, resumed: str) -> Iterator[str]:
        first = [span for span in self.tracers if span.trace == paused]
        second = [span for span in self.tracers if span.trace == resumed]
        linked = any(paused in span.links for span in second)
        said = [
            set[str]().union(*map(self.reader.conversations, spans)) for spans in (first, second)
        ]
        if not linked and not said[0] & said[1]:
            yield "nothing leads from the resumed run to the one that paused"

    def open(self) -> Iterator[str]:
        unit = self.scenario.open_unit
        if unit and not any(unit in text for text in self.recording.arrived):
            yield f"{unit} was not seen while it hung"


def _hangs_off(above: Sequence[Span], mark: Mark) -> str:
    if not mark.header:
        return "carries no traceparent"
    # the first is the span of the request itself
    return f"hangs off {above[1].name!r}" if len(above) > 1 else "hangs off a span not known"
