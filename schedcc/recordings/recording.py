"""Recorded runs: what every rank executed, and when, on a time common to all ranks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from schedcc.io.plain_text import visible
from schedcc.io.plan_columns import ProgramColumns, table_of
from schedcc.recordings.executions import Executions
from schedcc.table.ranges import in_words, runs
from schedcc.table.table import PlanTable
from schemas import PipelinePlan, PlanHeader, StagePlan
from schemas.recording import (
    ErrorRaised,
    RecordingHeader,
)


class RecordedPlan(NamedTuple):
    """The plan of one rank, as its file holds it."""

    header: StagePlan
    """The plan; its instructions are in `program` alone."""
    program: ProgramColumns


@dataclass
class RecordedRun:
    """One execution of a plan by one rank."""

    number: int
    fingerprint: str
    start: int
    plan: RecordedPlan | None
    """`None` where the file does not hold it."""
    executed: Executions
    end: int | None = None
    """`None`: the run did not get to its end."""
    micro_batches: int | None = None
    """How many micro-batches the data holds; `None`: as far as the rank knew, all of the plan's."""
    told: int | None = None
    """Instructions that the rank had entered before it knew; `None`: it never came to know."""
    data_ended: int | None = None
    """When it came to know."""


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
    stages: tuple[int, ...]
    """The stages that the rank holds, as a plan of its pipeline says; without any, one for each
    rank."""
    runs: list[RecordedRun] = field(default_factory=list)
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
    _by_number: dict[int, RecordedRun] = field(default_factory=dict, repr=False)

    @property
    def file_name(self) -> str:
        """The name of the file, for messages."""
        return visible(self.file.name)

    @property
    def name(self) -> str:
        """The rank in words, for messages."""
        return rank_in_words(self.header.rank, self.stages)

    @property
    def pipeline_rank(self) -> int:
        """The rank in its pipeline, as plans number them."""
        return self.header.stage_id

    @property
    def stage_id(self) -> int | None:
        """The rank's stage; `None` where it does not hold one."""
        return self.stages[0] if len(self.stages) == 1 else None

    @property
    def stopped_in(self) -> set[int]:
        """The run in which the rank was inside an instruction when its file ends, if any."""
        return {run.number for run in self.runs[-1:] if run.executed.is_open}

    def run(self, number: int) -> RecordedRun | None:
        """The run with this number."""
        if len(self._by_number) != len(self.runs):
            self._by_number = {run.number: run for run in reversed(self.runs)}
        return self._by_number.get(number)


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
        """The ranks of each pipeline, by their rank in it.

        Which replica and pipeline a rank belongs to is what its header says. Where that does not
        tell files of one rank apart, they are of several pipelines, in the order of the ranks.
        """
        found: dict[PipelineId, dict[int, RankRecording]] = {}
        alike: Counter[tuple[int, str, int]] = Counter()
        for rank in sorted(self.ranks, key=lambda rank: rank.header.rank):
            place = rank.header.replica, rank.header.pipeline or "", rank.pipeline_rank
            pipeline = PipelineId(*place[:2], number=alike[place])
            alike[place] += 1
            found.setdefault(pipeline, {})[rank.pipeline_rank] = rank
        return dict(sorted(found.items()))

    @cached_property
    def _pipeline_of(self) -> dict[Path, PipelineId]:
        return {
            rank.file: pipeline
            for pipeline, by_rank in self.pipelines.items()
            for rank in by_rank.values()
        }

    def pipeline_of(self, rank: RankRecording) -> PipelineId:
        """The pipeline that a rank belongs to."""
        return self._pipeline_of[rank.file]

    def micro_batches(self, pipeline: PipelineId, run: int) -> int | None:
        """How many micro-batches the data of a run held, if any rank knew of fewer than planned."""
        ranks = self.pipelines[pipeline].values()
        began = [found for rank in ranks if (found := rank.run(run)) is not None]
        return min((r.micro_batches for r in began if r.micro_batches is not None), default=None)

    def plan(self, pipeline: PipelineId, run: int) -> PipelinePlan | None:
        """The plan of a run, put together from those of the ranks that recorded theirs."""
        plans = list(self._plans(pipeline, run))
        if not plans:
            return None
        header = _common_header(plans)
        return PipelinePlan(
            schedule=header.schedule,
            micro_batches=header.micro_batches,
            stages=header.stages,
            ranks=header.ranks,
            placement=header.placement,
            num_buffers=header.num_buffers,
            programs=tuple(plan.program.program() for plan in plans),
        )

    def plan_table(self, pipeline: PipelineId, run: int) -> PlanTable | None:
        """The plan of a run as columns."""
        plans = list(self._plans(pipeline, run))
        return table_of(_common_header(plans), [plan.program for plan in plans]) if plans else None

    def _plans(self, pipeline: PipelineId, run: int) -> Iterator[RecordedPlan]:
        for _, rank in sorted(self.pipelines[pipeline].items()):
            found = rank.run(run)
            if found is not None and found.plan is not None:
                yield found.plan


def rank_in_words(rank: int, stages: Sequence[int]) -> str:
    """A rank and the stages that it holds, for messages.

    >>> rank_in_words(3, [1]), rank_in_words(0, [0, 2]), rank_in_words(5, [])
    ('rank 3 (stage 1)', 'rank 0 (stages 0, 2)', 'rank 5')
    """
    held = f" ({in_words('stage', runs(stages))})" if stages else ""
    return f"rank {rank}{held}"


def _common_header(plans: list[RecordedPlan]) -> PlanHeader:
    headers = [plan.header for plan in plans]
    longest = max(headers, key=lambda header: header.stages)
    return PlanHeader(
        format="",
        schedule=headers[0].schedule,
        micro_batches=max(header.micro_batches for header in headers),
        stages=longest.stages,
        ranks=longest.ranks,
        placement=longest.placement,
        num_buffers=max(header.num_buffers for header in headers),
    )
