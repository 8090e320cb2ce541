"""Plans: the instructions of one stage, or of all stages of a pipeline.

A plan is a frozen value. Its JSON form is lossless. Plans and programs may carry extensions under
keys that begin with `x-`, which are kept; any other unknown key is refused, since nobody could say
what executing it means.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import ClassVar, Literal, NamedTuple

from schemas.base import Count, Extensible, Id, Size
from schemas.instructions import EpilogueInstruction, Instruction, StepInstruction

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


class StageProgram(Extensible):
    """The instructions of one stage: its steps, then its epilogue."""

    noun: ClassVar[str] = "a program"

    stage_id: Id
    steps: tuple[Step, ...]
    epilogue: tuple[EpilogueInstruction, ...] = ()

    def placed(self) -> Iterator[Placed]:
        """Every instruction in execution order, with its place."""
        offset = 0
        for step, instructions in enumerate(self.steps):
            for instruction in instructions:
                yield Placed(offset, step, instruction)
                offset += 1
        for epilogue_instruction in self.epilogue:
            yield Placed(offset, None, epilogue_instruction)
            offset += 1


class PlanHeader(Extensible):
    """What a plan is a plan for."""

    noun: ClassVar[str] = "a plan"

    format: str
    schedule: str = "inference"
    micro_batches: Size
    """M, the number of micro-batches; 0 where a replica only takes part in the epilogue."""
    stages: Count
    """S, the number of stages."""
    num_buffers: Count = 2
    """Buffers on each stage."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan's JSON form: two stages with the same fingerprint have one plan."""
        return sha256(self.model_dump_json().encode()).hexdigest()


class StagePlan(PlanHeader):
    """The plan of one stage, complete in itself: what an interpreter executes."""

    format: Literal["schedcc.stage-plan/1"] = "schedcc.stage-plan/1"
    stage_id: Id
    steps: tuple[Step, ...]
    epilogue: tuple[EpilogueInstruction, ...] = ()

    @property
    def program(self) -> StageProgram:
        """The stage's instructions without the header."""
        return StageProgram.model_construct(
            stage_id=self.stage_id, steps=self.steps, epilogue=self.epilogue
        )


class PipelinePlan(PlanHeader):
    """The plans of all stages of one pipeline."""

    format: Literal["schedcc.plan/1"] = "schedcc.plan/1"
    programs: tuple[StageProgram, ...]

    def stage(self, stage_id: int) -> StagePlan:
        """The plan of stage `stage_id`. Raises `KeyError` if the plan has no such stage."""
        for program in self.programs:
            if program.stage_id == stage_id:
                return StagePlan.model_construct(
                    schedule=self.schedule,
                    micro_batches=self.micro_batches,
                    stages=self.stages,
                    num_buffers=self.num_buffers,
                    stage_id=stage_id,
                    steps=program.steps,
                    epilogue=program.epilogue,
                )
        raise KeyError(stage_id)
