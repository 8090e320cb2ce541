"""Plans for data whose length nobody knows: programs without an end, which are cut where it ends.

A plan without some whole micro-batches is as sound as it was. So a program for more micro-batches
than there ever are, made as it is executed, does for any number of them. It takes a schedule that
repeats, see `schedcc.schedules.schedule`; the proof for its period is the proof for all.
"""

from collections.abc import Iterator

from schedcc.compiler import transport_for
from schedcc.derive.repetition import Repetition, repetition
from schedcc.errors import ScheduleError
from schedcc.proof import proven
from schedcc.schedules import Schedule
from schedcc.schedules.epilogue import Outcome, epilogue
from schedcc.schedules.schedule import Overlap
from schedcc.table.codes import IS_BUFFER
from schedcc.table.materialise import steps_of
from schemas import EpilogueInstruction, Placed, Step
from schemas.plans import placed_in

MICRO_BATCHES = 2**40
"""More than any data set has."""

_PERIODS = 16
"""Periods that are made at once."""


class EndlessPlan:
    """The plans of all ranks of one pipeline, for any number of micro-batches."""

    def __init__(self, programs: Repetition, outcome: Outcome, *, overlap: Overlap) -> None:
        """Run `programs` for `outcome`; `overlap` says which variant they are.

        Raises:
            ScheduleError: there is no proof for them with the epilogue for that outcome.
        """
        if not proven(programs.programs, outcome, transport_for(overlap)):
            name = programs.programs.schedule
            raise ScheduleError(f"{name!r} is not sound with the epilogue for {outcome}")
        self._programs, self.outcome, self.overlap = programs, outcome, overlap
        self.header = programs.programs.header()
        """Of a plan for a few micro-batches, which is the same but for their number."""

    @property
    def fingerprint(self) -> str:
        """What is the same for ranks that execute parts of one plan."""
        h = self.header
        return f"{h.schedule} {h.placement} {h.num_buffers} {self.overlap} {self.outcome}"

    def instructions_of_a_micro_batch(self, rank: int) -> int:
        """How many instructions a rank executes for each micro-batch."""
        found = self._programs
        period = found.programs.rows[rank][int(found.begins[rank]) : int(found.ends[rank])]
        return int(IS_BUFFER[period.op].sum()) // found.period.micro_batches

    def placed(self, rank: int) -> Iterator[Placed]:
        """The instructions of a rank's steps, with their places."""
        return placed_in(self.steps(rank))

    def steps(self, rank: int) -> Iterator[Step]:
        """The steps of a rank, one by one and in constant memory."""
        for block in self._programs.blocks(rank, periods=_PERIODS):
            yield from steps_of(*block)

    def epilogue(self, rank: int) -> tuple[EpilogueInstruction, ...]:
        """What a rank does once all micro-batches are through."""
        return epilogue(self.header.placement, rank, self.outcome)


def endless_programs(
    schedule: Schedule, stages: int, ranks: int, *, overlap: Overlap
) -> Repetition | None:
    """Programs for any number of micro-batches; `None` if there is no proof for all of them.

    Raises:
        ScheduleError: the schedule makes no sense.
    """
    found = repetition(schedule, MICRO_BATCHES, stages, ranks, overlap=overlap)
    if found is None or not proven(found.programs, Outcome(), transport_for(overlap)):
        return None
    return found
