"""Recorded runs: what every rank executed, and when, on a time common to all ranks."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from schemas import PipelinePlan, Placed, StagePlan, StageProgram
from schemas.recording import (
    ErrorRaised,
    RecordingHeader,
)


@dataclass
class Executed:
    """One instruction that was entered; times are in nanoseconds, common to all ranks."""

    placed: Placed
    start: int
    end: int | None = None
    """`None`: it was never left."""
    nbytes: int | None = None


@dataclass
class Run:
    """One execution of a plan by one rank."""

    number: int
    fingerprint: str
    start: int
    plan: StagePlan | None
    """`None` where the file does not hold it."""
    executed: list[Executed] = field(default_factory=list)
    end: int | None = None
    """`None`: the run did not get to its end."""

    @property
    def open(self) -> Executed | None:
        """The instruction that was entered and not left."""
        last = self.executed[-1] if self.executed else None
        return last if last is not None and last.end is None else None


@dataclass
class RankRecording:
    """One rank's file."""

    file: Path
    header: RecordingHeader
    runs: list[Run] = field(default_factory=list)
    errors: list[tuple[int, ErrorRaised]] = field(default_factory=list)
    """All errors, each with its time."""
    failed: bool = False
    """Whether the last thing that happened was an error."""
    closed: bool = False
    alive: bool = False
    """Whether the process that writes the file still runs."""
    first: int = 0
    last: int = 0
    """Times of the first and the last line."""
    cut: bool = False
    """Whether the last line breaks off."""
    damages: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The rank in words, for messages."""
        return f"rank {self.header.rank} (stage {self.header.stage_id})"

    def run(self, number: int) -> Run | None:
        """The run with this number."""
        return next((run for run in self.runs if run.number == number), None)


@dataclass(frozen=True)
class Recording:
    """All ranks' files."""

    directory: Path
    ranks: tuple[RankRecording, ...]
    damages: tuple[str, ...]
    """What could not be read, and which ranks are missing."""

    @cached_property
    def last(self) -> int:
        """Time of the last event anywhere."""
        return max(rank.last for rank in self.ranks)

    @property
    def one_clock(self) -> bool:
        """Whether all times come from one clock, so that they compare exactly."""
        return len({rank.header.clock for rank in self.ranks}) == 1

    def replica(self, number: int) -> dict[int, RankRecording]:
        """The ranks of one copy of the pipeline, by stage."""
        return {r.header.stage_id: r for r in self.ranks if r.header.replica == number}

    def plan(self, replica: int, run: int) -> PipelinePlan | None:
        """The plan of a run, put together from those of the stages that recorded theirs."""
        found = [r.run(run) for _, r in sorted(self.replica(replica).items())]
        return joined(run.plan for run in found if run is not None and run.plan is not None)


def joined(plans: Iterable[StagePlan]) -> PipelinePlan | None:
    """The plan that stage plans are parts of; `None` of none."""
    known = list(plans)
    if not known:
        return None
    return PipelinePlan(
        schedule=known[0].schedule,
        micro_batches=max(plan.micro_batches for plan in known),
        stages=max(plan.stages for plan in known),
        num_buffers=max(plan.num_buffers for plan in known),
        programs=tuple(
            StageProgram(stage_id=plan.stage_id, steps=plan.steps, epilogue=plan.epilogue)
            for plan in known
        ),
    )
