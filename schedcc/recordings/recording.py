"""Recorded runs: what every rank executed, and when, on a time common to all ranks."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from schedcc.io.plain_text import visible
from schemas import PipelinePlan, Placed, RankProgram, StagePlan
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
    micro_batches: int | None = None
    """How many micro-batches the data holds; `None`: as far as the rank knew, all of the plan's."""
    told: int | None = None
    """Instructions that the rank had entered before it knew; `None`: it never came to know."""
    data_ended: int | None = None
    """When it came to know."""

    @property
    def open(self) -> Executed | None:
        """The instruction that was entered and not left."""
        last = self.executed[-1] if self.executed else None
        return last if last is not None and last.end is None else None


class PipelineId(NamedTuple):
    """Which pipeline a rank belongs to."""

    replica: int
    name: str = ""
    """What its header calls it, where a replica has several."""
    number: int = 0
    """Counts pipelines of which the headers say the same, in the order of their ranks."""

    def __str__(self) -> str:
        number = f"pipeline {self.number}" if self.number else ""
        return ", ".join(filter(None, [f"replica {self.replica}", visible(self.name), number]))


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
    def file_name(self) -> str:
        """The name of the file, for messages."""
        return visible(self.file.name)

    @property
    def name(self) -> str:
        """The rank in words, for messages."""
        return f"rank {self.header.rank} (stage {self.header.stage_id})"

    @property
    def stopped_in(self) -> set[int]:
        """The run in which the rank was inside an instruction when its file ends, if any."""
        return {run.number for run in self.runs[-1:] if run.open is not None}

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

    @cached_property
    def pipelines(self) -> dict[PipelineId, dict[int, RankRecording]]:
        """The ranks of each pipeline, by stage.

        Which replica and pipeline a rank belongs to is what its header says. Where that does not
        tell the ranks of a stage apart, they are of several pipelines, in the order of the ranks.
        """
        found: dict[PipelineId, dict[int, RankRecording]] = {}
        for rank in sorted(self.ranks, key=lambda rank: rank.header.rank):
            pipeline = PipelineId(rank.header.replica, rank.header.pipeline or "")
            while rank.header.stage_id in found.get(pipeline, ()):
                pipeline = pipeline._replace(number=pipeline.number + 1)
            found.setdefault(pipeline, {})[rank.header.stage_id] = rank
        return dict(sorted(found.items()))

    def pipeline_of(self, rank: RankRecording) -> PipelineId:
        """The pipeline that a rank belongs to."""
        return next(
            pipeline
            for pipeline, by_stage in self.pipelines.items()
            if by_stage.get(rank.header.stage_id) is rank
        )

    def micro_batches(self, pipeline: PipelineId, run: int) -> int | None:
        """How many micro-batches the data of a run held, if any rank knew of fewer than planned."""
        ranks = self.pipelines[pipeline].values()
        began = [found for rank in ranks if (found := rank.run(run)) is not None]
        return min((r.micro_batches for r in began if r.micro_batches is not None), default=None)

    def plan(self, pipeline: PipelineId, run: int) -> PipelinePlan | None:
        """The plan of a run, put together from those of the stages that recorded theirs."""
        found = [rank.run(run) for _, rank in sorted(self.pipelines[pipeline].items())]
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
        ranks=known[0].ranks,
        placement=known[0].placement,
        num_buffers=max(plan.num_buffers for plan in known),
        programs=tuple(
            RankProgram(rank=plan.rank, steps=plan.steps, epilogue=plan.epilogue) for plan in known
        ),
    )
