"""A schedule that repeats is checked in the time of a short plan, with the verdict of a long."""

from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schedcc import Period, ScheduleError, check, check_schedule, compile_pipeline
from schedcc.derive.forwards import forwards_of
from schedcc.schedules import SCHEDULES
from schedcc.table.table import PlanTable
from schedcc.testing import transport_models


@pytest.fixture
def rows_of(monkeypatch):
    """How many instructions are looked at when a schedule is checked."""
    seen: list[int] = []
    joined = PlanTable.joined

    def counting(header, parts):
        table = joined(header, parts)
        seen.append(len(table.rows))
        return table

    monkeypatch.setattr(PlanTable, "joined", counting)

    def rows(*size, **options) -> int:
        seen.clear()
        assert check_schedule(*size, **options).ok
        return sum(seen)

    return rows


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_billion_micro_batches_are_as_much_work_as_a_thousand(rows_of, schedule, overlap, ranks):
    stages = ranks if schedule.name == "inference" else 2 * ranks
    options = {"schedule": schedule, "ranks": ranks, "overlap": overlap}
    thousand = 1000 + (10**9 - 1000) % (2 * ranks)  # as much longer than whole periods
    work = rows_of(10**9, stages, **options)
    assert work == rows_of(thousand, stages, **options)
    whole = sum(
        len(step)
        for program in compile_pipeline(thousand, stages, **options).programs
        for step in program.steps
    )
    assert work < whole / 4


@dataclass(frozen=True)
class Repeating:
    """Micro-batches enter in groups, each like the one before; any placement, any pace."""

    offsets: tuple[int, ...]
    """When the micro-batches of a group enter, from its own first step."""
    steps: int
    """From group to group."""
    delays: tuple[int, ...]
    """`[stages]`: how many steps after a micro-batch entered a stage forwards it."""
    ranks: tuple[int, ...]
    name: str = "repeating"

    def placement(self, stages, ranks):  # noqa: ARG002
        return list(self.ranks)

    def forwards(self, micro_batches, stages, ranks):  # noqa: ARG002
        for m in range(micro_batches):
            group, number = divmod(m, len(self.offsets))
            for stage, delay in enumerate(self.delays):
                yield group * self.steps + self.offsets[number] + delay, stage, m


class Promising(Repeating):
    """The same, and says so."""

    def period(self, stages, ranks):  # noqa: ARG002
        return Period(len(self.offsets), self.steps)


@st.composite
def repeating(draw: st.DrawFn) -> tuple[Repeating, Promising]:
    gaps = st.integers(1, 3)
    offsets = (0, *accumulate(draw(st.lists(gaps, max_size=2))))
    delays = (0, *accumulate(draw(st.lists(gaps, max_size=4))))
    ranks = draw(st.integers(1, len(delays)))
    placement = st.lists(
        st.integers(0, ranks - 1), min_size=len(delays) - ranks, max_size=len(delays) - ranks
    )
    placed = draw(st.permutations([*range(ranks), *draw(placement)]))
    steps = offsets[-1] + draw(st.integers(1, 12))
    fields = (offsets, steps, delays, tuple(placed))
    return Repeating(*fields), Promising(*fields)


@settings(max_examples=50)
@given(
    schedules=repeating(),
    micro_batches=st.integers(1, 40),
    overlap=st.booleans(),
    transport=transport_models() | transport_models(step_barrier=True),
)
def test_the_short_way_comes_to_the_verdict_of_the_long_one(
    schedules, micro_batches, overlap, transport
):
    silent, promising = schedules
    stages, ranks = len(silent.delays), max(silent.ranks) + 1
    try:
        forwards_of(silent, micro_batches, stages, ranks)
    except ScheduleError:
        assume(False)
    size = {"ranks": ranks, "overlap": overlap}
    report = check_schedule(micro_batches, stages, schedule=promising, transport=transport, **size)
    plan = compile_pipeline(micro_batches, stages, schedule=silent, **size)
    assert report == check(plan, transport)
