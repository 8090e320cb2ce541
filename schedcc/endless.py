"""Plans for data whose length nobody knows: programs without an end, which are cut where it ends.

A plan without some whole micro-batches is as sound as it was. So a program for more micro-batches
than there ever are, made as it is executed, does for any number of them. It takes a schedule that
repeats, see `schedcc.schedules.schedule`; the proof for its period is the proof for all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from schedcc.compiler import required
from schedcc.derive.repetition import Repetition, repetition
from schedcc.proof import proven
from schedcc.schedules import Schedule
from schedcc.schedules.epilogue import Outcome, epilogue
from schedcc.table.materialise import steps_of
from schedcc.table.table import IS_BUFFER
from schemas import EpilogueInstruction, Placed, Step, TransportModel

MICRO_BATCHES = 2**40
"""More than any data set has."""

_PERIODS = 16
"""Periods that are made at once."""


@dataclass(frozen=True)
class EndlessPlan:
    """The plans of all ranks of one pipeline, for any number of micro-batches."""

    schedule: str
    stages: int
    ranks: int
    placement: tuple[int, ...]
    num_buffers: int
    overlap: bool
    outcome: Outcome
    _programs: Repetition

    @property
    def unit(self) -> Literal["stage", "rank"]:
        """What messages call who executes a program."""
        return "stage" if self.placement == tuple(range(self.stages)) else "rank"

    @property
    def fingerprint(self) -> str:
        """What is the same for ranks that execute parts of one plan."""
        return f"{self.schedule} {self.placement} {self.num_buffers} {self.overlap} {self.outcome}"

    def instructions_of_a_micro_batch(self, rank: int) -> int:
        """How many instructions a rank executes for each micro-batch."""
        found = self._programs
        period = found.programs.rows[rank][int(found.begins[rank]) : int(found.ends[rank])]
        return int(IS_BUFFER[period.op].sum()) // found.period.micro_batches

    def placed(self, rank: int) -> Iterator[Placed]:
        """The instructions of a rank's steps, with their places."""
        offset = 0
        for number, step in enumerate(self.steps(rank)):
            for instruction in step:
                yield Placed(offset, number, instruction)
                offset += 1

    def steps(self, rank: int) -> Iterator[Step]:
        """The steps of a rank, one by one and in constant memory."""
        for block in self._programs.blocks(rank, periods=_PERIODS):
            yield from steps_of(*block)

    def epilogue(self, rank: int) -> tuple[EpilogueInstruction, ...]:
        """What a rank does once all micro-batches are through."""
        return epilogue(self.placement, rank, self.outcome)


def compile_endless(
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    overlap: bool = False,
    outcome: Outcome | None = None,
) -> EndlessPlan | None:
    """Compile a plan for any number of micro-batches; `None` if the schedule does not repeat.

    The arguments are those of `compile_pipeline`.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    value, ranks = required(MICRO_BATCHES, stages, schedule, ranks)
    outcome = outcome or Outcome()
    found = repetition(value, MICRO_BATCHES, stages, ranks, overlap=overlap)
    if found is None or not proven(found.programs, outcome, TransportModel()):
        return None
    whole = found.programs
    return EndlessPlan(
        schedule=whole.schedule,
        stages=stages,
        ranks=whole.ranks,
        placement=whole.placement,
        num_buffers=whole.num_buffers,
        overlap=overlap,
        outcome=outcome,
        _programs=found,
    )
