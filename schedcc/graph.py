"""The dependency graph of a plan: what has to happen before what, and why.

The model of execution is the strictest that a transport may have: one in-order queue of transfers
per stage, and rendezvous (a send ends only with its receive). Under it the two ends of a transfer
end together, after both have started and after everything ahead of either in its queue::

    stage 0    start(send) ──program──> end(send) ──program──> start of the next instruction
                    └──────data───────┐  ^
                    ┌───rendezvous────│──┘
    stage 1    start(recv) ──program──> end(recv) ──program──> start of the next instruction

A posted transfer lets its program go on from its start; its end is what the wait waits for.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import networkx as nx

from schedcc.channels import channels
from schedcc.checks.collectives import collectives
from schemas import (
    BufferInstruction,
    Direction,
    Phase,
    PipelinePlan,
    Placed,
    StageProgram,
    TransferInstruction,
)

Why = Literal["program", "data", "rendezvous", "queue", "collective"]


class Event(NamedTuple):
    """A node: the start or the end of the instruction at position `offset` of a stage's program."""

    stage_id: int
    offset: int
    moment: Literal["start", "end"]


def dependency_graph(plan: PipelinePlan) -> "nx.DiGraph[Event]":
    """Build the dependency graph of a plan.

    Nodes are `Event`s with the attributes `instruction` and `step` (`None` in the epilogue). An
    edge from `a` to `b` means that `b` cannot happen before `a`; its attribute `why` is one of

    - `program`: the stage executes its instructions in order;
    - `data`: the message comes from the other stage;
    - `rendezvous`: a send ends only when the other stage receives;
    - `queue`: a stage's transfers end in the order in which they were issued;
    - `collective`: all stages have to enter a collective before anyone leaves it.

    A transfer without a counterpart gets no edge, which is a matter for `check`.
    """
    graph: nx.DiGraph[Event] = nx.DiGraph()
    programs = {program.stage_id: program for program in plan.programs}
    for program in programs.values():
        _add_program(graph, program)
    queues = {program.stage_id: _queue_predecessors(program) for program in programs.values()}
    for (source, destination), traffic in channels(programs.values()).items():
        for send, receive in zip(traffic.sends, traffic.receives, strict=False):
            ends = ((source, send), (destination, receive))
            for (stage, placed), (peer, counterpart) in (ends, ends[::-1]):
                why: Why = "rendezvous" if placed is send else "data"
                end = Event(stage, placed.offset, "end")
                graph.add_edge(Event(peer, counterpart.offset, "start"), end, why=why)
                ahead = queues[peer].get(counterpart.offset)
                if ahead is not None:
                    graph.add_edge(Event(peer, ahead, "end"), end, why="queue")
    _add_collectives(graph, list(programs.values()))
    return graph


def _add_program(graph: "nx.DiGraph[Event]", program: StageProgram) -> None:
    placed_instructions = list(program.placed())
    for placed in placed_instructions:
        start, end = (Event(program.stage_id, placed.offset, m) for m in ("start", "end"))
        graph.add_node(start, instruction=placed.instruction, step=placed.step)
        graph.add_node(end, instruction=placed.instruction, step=placed.step)
        graph.add_edge(start, end, why="program")
    for before, after in pairwise(placed_instructions):
        # A post only starts its transfer: the program goes on at once.
        moment: Literal["start", "end"] = "start" if _phase(before) is Phase.POST else "end"
        left = Event(program.stage_id, before.offset, moment)
        graph.add_edge(left, Event(program.stage_id, after.offset, "start"), why="program")
    _add_waits(graph, program, placed_instructions)
    for offset, ahead in _queue_predecessors(program).items():
        left, right = Event(program.stage_id, ahead, "end"), Event(program.stage_id, offset, "end")
        graph.add_edge(left, right, why="queue")


def _add_waits(
    graph: "nx.DiGraph[Event]", program: StageProgram, placed_instructions: list[Placed]
) -> None:
    posts: dict[tuple[str, int, int], int] = {}
    for placed in placed_instructions:
        instruction = placed.instruction
        if not isinstance(instruction, TransferInstruction):
            continue
        transfer = (instruction.direction, instruction.micro_batch, instruction.peer)
        if _phase(placed) is Phase.POST:
            posts[transfer] = placed.offset
        elif _phase(placed) is Phase.WAIT and transfer in posts:
            posted = Event(program.stage_id, posts.pop(transfer), "end")
            waited = Event(program.stage_id, placed.offset, "end")
            why: Why = "data" if instruction.direction is Direction.RECV else "rendezvous"
            graph.add_edge(posted, waited, why=why)


def _queue_predecessors(program: StageProgram) -> dict[int, int]:
    """For each transfer that is issued behind a posted one: the offset of that posted one."""
    ahead: dict[int, int] = {}
    last: Placed | None = None
    for placed in program.placed():
        is_transfer = isinstance(placed.instruction, TransferInstruction)
        if not is_transfer or _phase(placed) is Phase.WAIT:
            continue
        if last is not None and _phase(last) is Phase.POST:
            ahead[placed.offset] = last.offset
        last = placed
    return ahead


def _add_collectives(graph: "nx.DiGraph[Event]", programs: list[StageProgram]) -> None:
    entered = {}
    for program in programs:
        own = set(map(id, collectives(program)))
        offsets = [p.offset for p in program.placed() if id(p.instruction) in own]
        entered[program.stage_id] = offsets
    for number in range(min(map(len, entered.values()), default=0)):
        members = [(stage_id, offsets[number]) for stage_id, offsets in entered.items()]
        # All starts before the first member's end, and that end before all others: 2 S edges.
        meeting = Event(*members[0], "end")
        for stage_id, offset in members[1:]:
            graph.add_edge(Event(stage_id, offset, "start"), meeting, why="collective")
            graph.add_edge(meeting, Event(stage_id, offset, "end"), why="collective")


def _phase(placed: Placed) -> Phase | None:
    instruction = placed.instruction
    return instruction.effects.phase if isinstance(instruction, BufferInstruction) else None
