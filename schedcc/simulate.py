"""Simulation: when every instruction of a plan starts and ends, under a model of costs.

A longest path in the dependency graph: an instruction starts when everything it depends on is
done. Under rendezvous both ends of a transfer end together, its cost after both have started and
after whatever is ahead of either in its queue; a buffered send does not wait for its receive, which
still takes the cost of the transfer from its own start. Forwards and transfers do not slow each
other down.
"""

import math
from collections import defaultdict

from schedcc.channels import is_transfer
from schedcc.checks import check_with_graph
from schedcc.errors import UnsoundPlanError
from schedcc.graph import Event, dependency_graph
from schedcc.times import event_times, is_forward
from schemas import (
    BufferInstruction,
    Costs,
    Instruction,
    PipelinePlan,
    Place,
    Span,
    StageProgram,
    StageTimeline,
    Timeline,
    TransferInstruction,
    TransportModel,
    places,
)


def simulate(
    plan: PipelinePlan, costs: Costs | None = None, transport: TransportModel | None = None
) -> Timeline:
    """Predict the timeline of a plan.

    Args:
        plan: A sound plan of any form.
        costs: Seconds of forwards and transfers; default: one second a forward, nothing else.
        transport: What transfers wait for; default: the strictest model.

    Returns:
        Spans of all instructions, makespan, and what follows from them.

    Raises:
        UnsoundPlanError: the plan never ends, or does something else than it should.
        ValueError: there are costs for another number of stages, or their sum is no number.
    """
    costs = costs or Costs()
    forward = costs.forward_seconds(plan.stages)
    transport = transport or TransportModel()
    graph = dependency_graph(plan, transport)
    report = check_with_graph(plan, transport, graph)
    if not report.ok:
        raise UnsoundPlanError(f"a plan with errors has no timeline: {next(report.errors())}")

    def cost(stage_id: int, instruction: Instruction) -> float:
        if is_forward(instruction):
            return forward[stage_id]
        return costs.transfer_seconds if is_transfer(instruction) else 0.0

    times = event_times(graph, cost)
    makespan = max(times.values(), default=0.0)
    total = plan.stages * makespan
    if not math.isfinite(total):
        raise ValueError(f"the costs add up to {total} seconds, needed a finite number of seconds")
    stages = tuple(
        _stage_timeline(plan, program, times, makespan, costs)
        for program in sorted(plan.programs, key=lambda program: program.stage_id)
    )
    steps = plan.micro_batches + plan.stages - 1
    return Timeline(
        costs=costs,
        makespan=makespan,
        bubble=sum(stage.idle for stage in stages) / total if total else 0.0,
        ideal=sum(forward) + (plan.micro_batches - 1) * max(forward),
        ideal_bubble=(plan.stages - 1) / steps,
        stages=stages,
    )


def _stage_timeline(
    plan: PipelinePlan,
    program: StageProgram,
    times: dict[Event, float],
    makespan: float,
    costs: Costs,
) -> StageTimeline:
    spans = tuple(
        Span(
            step=placed.step,
            instruction=placed.instruction,
            start=times[Event(program.stage_id, placed.offset, "start")],
            end=times[Event(program.stage_id, placed.offset, "end")],
        )
        for placed in program.placed()
    )
    busy = sum(span.end - span.start for span in spans if is_forward(span.instruction))
    held = _most_held(spans, program.stage_id, plan.stages)
    return StageTimeline(
        stage_id=program.stage_id,
        spans=spans,
        busy=busy,
        idle=makespan - busy,
        peak_bytes=held * costs.activation_bytes,
    )


def _most_held(spans: tuple[Span, ...], stage_id: int, stages: int) -> int:
    """The most activations at once, each from the start of its write to the end of its last read.

    Only what a transfer moves counts: inputs that are received, outputs that are sent. The order
    of the program decides, so instructions that take no time hold what they hold, too.
    """
    lives: defaultdict[tuple[int, Place], list[int]] = defaultdict(list)
    travelling: set[tuple[int, Place]] = set()
    for offset, span in enumerate(spans):
        instruction = span.instruction
        if isinstance(instruction, BufferInstruction):
            effects = instruction.effects
            for place in places(effects.reads + effects.writes, stage_id, stages):
                value = (instruction.micro_batch, place)
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
