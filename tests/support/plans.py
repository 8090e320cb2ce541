"""Plans and outcomes that several tests need, and what the check for deadlocks says of a plan."""

from collections.abc import Iterator
from itertools import product
from typing import get_args

from schedcc import Outcome, compile_pipeline, dependency_graph
from schedcc.checks.deadlock import check_deadlock
from schedcc.testing.plans import with_program
from schemas import BufferInstruction, Finding, PipelinePlan, SendActivation, Step, TransportModel
from schemas.instruction_set.epilogue import LogitsTo, ReduceOutput


def all_outcomes(replicas: tuple[int, ...] = (1, 2)) -> Iterator[Outcome]:
    """Every combination of what can be asked for."""
    truth = (True, False)
    reductions: tuple[ReduceOutput | None, ...] = (*get_args(ReduceOutput), None)
    places: tuple[LogitsTo | None, ...] = (None, *get_args(LogitsTo))
    for loss, reduction, bcast, logits, metrics, copies in product(
        truth, reductions, truth, places, truth, replicas
    ):
        yield Outcome(
            compute_loss=loss,
            reduce_output=reduction,
            bcast_loss=bcast,
            return_logits=logits is not None,
            logits_to=logits or "last",
            compute_metrics=metrics,
            replicas=copies,
        )


def restricted(plan: PipelinePlan, micro_batches: int) -> PipelinePlan:
    """What is left of a plan when its data ends after so many of its micro-batches."""
    programs = []
    for program in plan.programs:
        steps = tuple(_kept(step, micro_batches) for step in program.steps)
        programs.append(program.model_copy(update={"steps": steps}))
    fewer = min(micro_batches, plan.micro_batches)
    return plan.model_copy(update={"micro_batches": fewer, "programs": tuple(programs)})


def _kept(step: Step, micro_batches: int) -> Step:
    return tuple(
        i for i in step if not isinstance(i, BufferInstruction) or i.micro_batch < micro_batches
    )


def deadlocks(plan: PipelinePlan, transport: TransportModel | None = None) -> list[Finding]:
    """What `check_deadlock` finds under a model of the transport."""
    return list(check_deadlock(dependency_graph(plan, transport)))


def sends_first(micro_batches: int, stages: int) -> PipelinePlan:
    """The inference schedule with every stage sending before it receives."""
    plan = compile_pipeline(micro_batches, stages)
    for program in plan.programs:
        steps = tuple(
            tuple(sorted(step, key=lambda i: not isinstance(i, SendActivation)))
            for step in program.steps
        )
        plan = with_program(plan, program.model_copy(update={"steps": steps}))
    return plan
