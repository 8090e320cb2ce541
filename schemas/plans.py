"""Plans: the instructions of one rank, or of all ranks of a pipeline.

A plan is a frozen value. Its JSON form is lossless. Plans and programs may carry extensions under
keys that begin with `x-`, which are kept; any other unknown key is refused, since nobody could say
what executing it means. Plans of the first format, which had one stage on each rank and did not
name it, are upgraded as they are read.
"""

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

from pydantic import model_validator

from schemas.base import Count, Extensible, Id, Size
from schemas.display import Displayed
from schemas.first_format import MOST_IMPLIED, upgraded_plan, upgraded_stage_plan
from schemas.instruction_set.epilogue import EpilogueInstruction
from schemas.instruction_set.instructions import Instruction, StepInstruction

Step = tuple[StepInstruction, ...]


class Placed(NamedTuple):
    """An instruction and where in its program it stands."""

    offset: int
    """Position in the program, counted over steps and epilogue."""
    step: int | None
    """The step, or `None` in the epilogue."""
    instruction: Instruction

    @property
    def where(self) -> str:
        """The place in words, for messages."""
        return "epilogue" if self.step is None else f"step {self.step}"


def in_circle(placement: Sequence[int]) -> bool:
    """Whether the channels between the ranks of stages lead around in a circle.

    >>> in_circle([0, 1, 2]), in_circle([0, 1, 0, 1]), in_circle([0, 0, 1])
    (False, True, False)
    """
    if all(rank <= after for rank, after in pairwise(placement)):  # as mostly, and soon seen
        return False
    sorter = TopologicalSorter[int]()
    for source, destination in pairwise(placement):
        if source != destination:
            sorter.add(destination, source)
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False


def placed_in(steps: Iterable[Step]) -> Iterator[Placed]:
    """The instructions of steps in execution order, with their places."""
    offset = 0
    for number, step in enumerate(steps):
        for instruction in step:
            yield Placed(offset, number, instruction)
            offset += 1


class RankProgram(Extensible):
    """The instructions of one rank: its steps, then its epilogue."""

    noun: ClassVar[str] = "a program"

    rank: Id
    steps: tuple[Step, ...]
    epilogue: tuple[EpilogueInstruction, ...] = ()

    def placed(self) -> Iterator[Placed]:
        """Every instruction in execution order, with its place."""
        offset = -1
        for placed in placed_in(self.steps):
            offset = placed.offset
            yield placed
        for number, instruction in enumerate(self.epilogue, start=offset + 1):
            yield Placed(number, None, instruction)


class PlanHeader(Extensible):
    """What a plan is a plan for."""

    noun: ClassVar[str] = "a plan"

    format: str
    schedule: str = "inference"
    micro_batches: Size
    """M, the number of micro-batches; 0 where a replica only takes part in the epilogue."""
    stages: Count
    """S, the number of stages."""
    ranks: Count
    """R, the number of ranks of the pipeline; left out: one for each stage."""
    placement: tuple[Id, ...]
    """The rank of each stage; left out: stage `s` is on rank `s`. It stays empty where more than
    `MOST_IMPLIED` stages leave it out, which no plan has programs for."""
    num_buffers: Count = 2
    """Buffers of each stage."""

    @model_validator(mode="before")
    @classmethod
    def _places_stages(cls, data: object) -> object:
        """One stage on each rank, where nothing else is said."""
        if not isinstance(data, dict) or "placement" in data or "ranks" in data:
            return data
        stages = data.get("stages")
        if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
            return {**data, "ranks": 1, "placement": ()}  # what is wrong with `stages` is told
        identity = tuple(range(stages)) if stages <= MOST_IMPLIED else ()
        return {**data, "ranks": stages, "placement": identity}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON form: two ranks with the same fingerprint have one plan."""
        return sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def is_one_to_one(self) -> bool:
        """Whether stage `s` is on rank `s`, and nothing else there."""
        return self.ranks == self.stages and self.placement == tuple(range(len(self.placement)))

    @property
    def unit(self) -> Literal["stage", "rank"]:
        """What messages call who executes a program: the stage, where that says it all."""
        return "stage" if self.is_one_to_one else "rank"

    def rank_of(self, stage_id: int) -> int:
        """The rank of a stage; of one that the placement does not know, a rank that there is not.

        Where stages and ranks are the same, also these are.
        """
        placed = len(self.placement)
        if 0 <= stage_id < placed:
            return self.placement[stage_id]
        return stage_id - placed + self.ranks if placed and stage_id >= placed else stage_id

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that a rank holds, in their order."""
        if not self.placement:
            return (rank,)
        return tuple(stage for stage, of in enumerate(self.placement) if of == rank)


class StagePlan(PlanHeader, Displayed):
    """The plan of one rank, complete in itself: what an interpreter executes."""

    format: Literal["schedcc.stage-plan/2"] = "schedcc.stage-plan/2"
    rank: Id
    steps: tuple[Step, ...]
    epilogue: tuple[EpilogueInstruction, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_first_format(cls, data: object) -> object:
        return upgraded_stage_plan(data)

    @property
    def stage_ids(self) -> tuple[int, ...]:
        """The stages that the rank holds, in their order."""
        return self.stages_of(self.rank)

    @property
    def stage_id(self) -> int:
        """The stage that the rank holds. Raises `ValueError` if it holds none or several."""
        stages = self.stage_ids
        if len(stages) != 1:
            held = ", ".join(map(str, stages)) or "none"
            raise ValueError(f"rank {self.rank} holds {len(stages)} stages ({held}), needed one")
        return stages[0]

    @property
    def program(self) -> RankProgram:
        """The rank's instructions without the header."""
        return RankProgram.model_construct(rank=self.rank, steps=self.steps, epilogue=self.epilogue)


class PipelinePlan(PlanHeader, Displayed):
    """The plans of all ranks of one pipeline."""

    format: Literal["schedcc.plan/2"] = "schedcc.plan/2"
    programs: tuple[RankProgram, ...]

    @model_validator(mode="before")
    @classmethod
    def _from_first_format(cls, data: object) -> object:
        return upgraded_plan(data)

    def rank(self, rank: int) -> StagePlan:
        """The plan of a rank. Raises `KeyError` if the plan has no such rank."""
        for program in self.programs:
            if program.rank == rank:
                return StagePlan.model_construct(
                    schedule=self.schedule,
                    micro_batches=self.micro_batches,
                    stages=self.stages,
                    ranks=self.ranks,
                    placement=self.placement,
                    num_buffers=self.num_buffers,
                    rank=rank,
                    steps=program.steps,
                    epilogue=program.epilogue,
                )
        raise KeyError(rank)

    def stage(self, stage_id: int) -> StagePlan:
        """The plan of the rank of a stage. Raises `KeyError` if the plan has no such stage."""
        if self.placement and not 0 <= stage_id < len(self.placement):
            raise KeyError(stage_id)
        return self.rank(self.rank_of(stage_id))
