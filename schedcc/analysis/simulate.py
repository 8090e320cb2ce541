"""Simulation: when every instruction of a plan starts and ends, under a model of costs.

A longest path in the dependency graph: an instruction starts when everything it depends on is
done. Under rendezvous both ends of a transfer end together, its cost after both have started and
after whatever is ahead of either in its queue; a buffered send does not wait for its receive, which
still takes the cost of the transfer from its own start. Forwards and transfers do not slow each
other down.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from schedcc.analysis.dependencies import Dependencies, ends
from schedcc.analysis.graph import plan_dependencies
from schedcc.analysis.levels import Seconds
from schedcc.analysis.times import Backend, backend_for, event_times
from schedcc.errors import UnsoundPlanError
from schedcc.table.table import IS_FORWARD, IS_TRANSFER, is_forward
from schedcc.verify import verdict
from schemas import (
    BufferInstruction,
    Costs,
    PipelinePlan,
    Place,
    RankProgram,
    Span,
    StageTimeline,
    Timeline,
    TransferInstruction,
    TransportModel,
)


def simulate(
    plan: PipelinePlan,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
) -> Timeline:
    """Predict the timeline of a plan.

    Args:
        plan: A sound plan of any schedule and variant.
        costs: Seconds of forwards and transfers; default: one second a forward, nothing else.
        transport: What transfers wait for; default: the strictest model.

    Returns:
        Spans of all instructions, makespan, and what follows from them.

    Raises:
        UnsoundPlanError: the plan never ends, or does something else than it should.
        ValueError: there are costs for another number of stages, or their sum is no number.
    """
    return timeline(plan, costs, transport, backend_for(plan.programs))


def timeline(
    plan: PipelinePlan, costs: Costs | None, transport: TransportModel | None, backend: Backend
) -> Timeline:
    """What `simulate` predicts, from a backend of the caller's choice."""
    costs = costs or Costs()
    transport = transport or TransportModel()
    report = verdict(plan, transport, backend)
    if not report.ok:
        raise UnsoundPlanError(f"a plan with errors has no timeline: {next(report.errors())}")
    # Only now is a number in the header one of programs that there are.
    forward = costs.forward_seconds(plan.stages)
    graph = plan_dependencies(plan, transport)
    table = graph.table
    seconds, _ = event_times(graph, _cost(graph, costs, forward), backend)
    makespan = float(seconds.max(initial=0.0))
    total = plan.ranks * makespan
    if not math.isfinite(total):
        raise ValueError(f"the costs add up to {total} seconds, needed a finite number of seconds")
    spans = seconds[: 2 * len(table.rows)].reshape(-1, 2)
    of_program = np.split(spans, table.first[1:])
    stages = tuple(
        _stage_timeline(plan, program, times.tolist(), makespan, costs)
        for program, times in sorted(
            zip(plan.programs, of_program, strict=True), key=lambda pair: pair[0].rank
        )
    )
    steps = round(_ideal(plan, (1.0,) * plan.stages))  # of equal stages
    busy = plan.micro_batches * plan.stages
    return Timeline(
        costs=costs,
        makespan=makespan,
        bubble=sum(stage.idle for stage in stages) / total if total else 0.0,
        ideal=_ideal(plan, forward),
        ideal_bubble=(plan.ranks * steps - busy) / (plan.ranks * steps) if steps else 0.0,
        stages=stages,
    )


def _ideal(plan: PipelinePlan, forward: Sequence[float]) -> float:
    """What no order of the same work on the same ranks can be faster than.

    For each rank: the stages before its first, then all that it has to forward, then the stages
    behind its last. With one stage on each rank, that is all forwards of one micro-batch and M - 1
    more of the slowest stage.
    """
    if not plan.micro_batches:
        return 0.0
    best = 0.0
    for rank in range(plan.ranks):
        held = plan.stages_of(rank)
        own = sum(forward[stage] for stage in held)
        once = sum(forward[: held[0]]) + own + sum(forward[held[-1] + 1 :])
        best = max(best, once + (plan.micro_batches - 1) * own)
    return best


def _cost(graph: Dependencies, costs: Costs, forward: tuple[float, ...]) -> Seconds:
    """`[events]`: seconds of forwards and transfers, at their ends."""
    rows, op = np.arange(len(graph.table.rows)), graph.table.rows.op
    seconds = np.zeros(graph.events)
    seconds[ends(rows)] = np.where(IS_TRANSFER[op], costs.transfer_seconds, 0.0)
    forwards = rows[IS_FORWARD[op]]
    seconds[ends(forwards)] = np.array(forward)[graph.table.rows.stage[forwards]]
    return seconds


def _stage_timeline(
    plan: PipelinePlan,
    program: RankProgram,
    times: list[list[float]],
    makespan: float,
    costs: Costs,
) -> StageTimeline:
    spans = tuple(
        Span.model_construct(step=placed.step, instruction=placed.instruction, start=start, end=end)
        for placed, (start, end) in zip(program.placed(), times, strict=True)
    )
    busy = sum(span.end - span.start for span in spans if is_forward(span.instruction))
    held = _most_held(spans, plan.stages)
    return StageTimeline(
        stage_id=program.rank if plan.is_one_to_one else None,
        rank=program.rank,
        spans=spans,
        busy=busy,
        idle=makespan - busy,
        peak_bytes=held * costs.activation_bytes,
    )


def _most_held(spans: tuple[Span, ...], stages: int) -> int:
    """The most activations at once, each from the start of its write to the end of its last read.

    Only what a transfer moves counts: inputs that are received, outputs that are sent. The order
    of the program decides, so instructions that take no time hold what they hold, too.
    """
    lives: defaultdict[tuple[int, int, Place], list[int]] = defaultdict(list)
    travelling: set[tuple[int, int, Place]] = set()
    for offset, span in enumerate(spans):
        instruction = span.instruction
        if isinstance(instruction, BufferInstruction):
            effects = instruction.effects
            for touched in instruction.touches(effects.reads + effects.writes, stages):
                value = (touched.stage, instruction.micro_batch, touched.place)
                lives[value].append(offset)
                if isinstance(instruction, TransferInstruction):
                    travelling.add(value)
    changes = sorted(
        change
        for value, offsets in lives.items()
        if value in travelling
        for change in ((min(offsets), False), (max(offsets), True))
    )
    held = most = 0
    for _, released in changes:
        held += -1 if released else 1
        most = max(most, held)
    return most
