"""A reference executor: what the plan of a whole pipeline does on a transport.

It shares no code with the checker. Values are the formulas of how they came about, so every stage
knows exactly what it should have been given: the output of stage 1 for micro-batch 2 is
`f1(f0(x2))`. A failure is of the kind of the finding that a checker must have for it.
"""

from collections import Counter, defaultdict

from schedcc.testing.machine import FailedError, Kind, Machine, require
from schedcc.testing.network import Network
from schemas import (
    BroadcastLogits,
    BroadcastLoss,
    Instruction,
    MoveLogits,
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    SendActivation,
    TransportModel,
)

__all__ = ["FailedError", "Kind", "execute"]


def execute(plan: PipelinePlan, transport: TransportModel | None = None) -> None:
    """Run all ranks of a plan to the end.

    Args:
        plan: Any plan.
        transport: What its transfers may rely on; default: the strictest model.

    Raises:
        FailedError: anything is stuck, lost or wrong.
    """
    transport = transport or TransportModel()
    network = Network(transport)
    programs = {program.rank: program for program in plan.programs}
    ranks = sorted(program.rank for program in plan.programs)
    every = list(range(plan.ranks))
    require(ranks == every, "structure", "not one program for each rank")
    placed = len(plan.placement) == plan.stages and sorted(set(plan.placement)) == every
    require(placed, "structure", "not a rank for each stage and a stage on each rank")
    machines = [
        Machine(plan, r, network, [(p.step, p.instruction) for p in programs[r].placed()])
        for r in ranks
    ]
    progress = True
    while progress:
        slowest = min(machine.step for machine in machines)
        barrier = slowest if transport.step_barrier else float("inf")
        progress = any([machine.advance(barrier) for machine in machines])  # noqa: C419 (every one)
        progress |= network.progress() or _leave_a_collective(machines)
    require(all(m.group is None for m in machines), "structure", "a group never ends")
    if not all(len(machine.instructions) == machine.position for machine in machines):
        raise FailedError("deadlock" if _all_have_counterparts(plan) else "channel", "stuck")
    require(not any(network.boxes.values()), "channel", "a message is never received")
    for machine in machines:
        require(not machine.to_itself, "structure", "a transfer of a rank with itself")
        require(not machine.posted, "channel", "never waited for")
        require(not machine.unread, "buffer", "a value is lost")
        for stage_id in machine.stages:
            in_order = machine.forwarded[stage_id] == list(range(plan.micro_batches))
            require(in_order, "coverage", "not all forwarded in order")


def _leave_a_collective(machines: list[Machine]) -> bool:
    """Let the ranks of a collective leave it when all of them have entered."""
    for entered in [machine.enters for machine in machines if machine.enters is not None]:
        ids = list(range(len(machines)))
        if isinstance(entered, MoveLogits):
            ids = sorted({machines[0].rank_of(s) for s in (entered.source, entered.destination)})
            require(len(ids) == 2 and ids[0] >= 0, "structure", "moved nowhere")
        members = [machines[rank] for rank in ids]
        if any(machine.enters != entered for machine in members):
            continue
        if isinstance(entered, BroadcastLoss):
            last = machines[0].plan.stages - 1
            require(entered.source == last, "structure", "broadcast without a loss")
            source = machines[machines[0].plan.placement[last]]
            require(source.loss is not None, "structure", "no loss to broadcast")
            for machine in members:
                machine.loss = source.loss
        for machine in members:
            machine.enters = None
            machine.position += 1
        return True
    return False


def _all_have_counterparts(plan: PipelinePlan) -> bool:
    """Whether each send has a receive, and each collective all its ranks, in the same order."""

    def rank_of(stage_id: int) -> int:
        return dict(enumerate(plan.placement)).get(stage_id, -1)

    ends: Counter[tuple[int, int]] = Counter()
    entered: defaultdict[tuple[int, ...], dict[int, list[Instruction]]] = defaultdict(dict)
    for program in plan.programs:
        here = program.rank
        for i in [placed.instruction for placed in program.placed()]:
            if isinstance(i, SendActivation | PostSendActivation):
                ends[here, rank_of(i.peer)] += 1
            elif isinstance(i, RecvActivation | PostRecvActivation):
                ends[rank_of(i.peer), here] -= 1
            elif isinstance(i, BroadcastLoss | BroadcastLogits):
                every = tuple(range(plan.ranks))
                entered[every].setdefault(here, []).append(i)
            elif isinstance(i, MoveLogits):
                both = tuple(sorted((rank_of(i.source), rank_of(i.destination))))
                if here in both:
                    entered[both].setdefault(here, []).append(i)
    meet = all(
        orders.get(rank) == next(iter(orders.values()))
        for ranks, orders in entered.items()
        for rank in ranks
        if rank >= 0  # others are a matter of structure
    )
    return meet and not any(ends.values())
