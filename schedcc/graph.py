"""The dependency graph of a plan: what has to happen before what, and why.

By default the model of execution is the strictest that a transport may have: one in-order queue of
transfers per stage, and rendezvous (a send ends only with its receive). Under it both ends of a
transfer end together, after both have started and after all that is ahead of either in its queue::

    stage 0    start(send) ──program──> end(send) ──program──> start of the next instruction
                    └──────data───────┐  ^
                    ┌───rendezvous────│──┘
    stage 1    start(recv) ──program──> end(recv) ──program──> start of the next instruction

A posted transfer lets its program go on from its start; its end is what the wait waits for.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import networkx as nx

from schedcc.channels import channels, collectives, is_transfer
from schemas import (
    BufferInstruction,
    Direction,
    Phase,
    PipelinePlan,
    Placed,
    StageProgram,
    TransferInstruction,
    TransportModel,
)

Why = Literal["program", "data", "rendezvous", "queue", "collective"]


class Event(NamedTuple):
    """A node: the start or the end of the instruction at position `offset` of a stage's program."""

    stage_id: int
    offset: int
    moment: Literal["start", "end"]


def dependency_graph(
    plan: PipelinePlan, transport: TransportModel | None = None
) -> "nx.DiGraph[Event]":
    """Build the dependency graph of a plan, under a model of its transport.

    Nodes are `Event`s with the attributes `instruction` and `step` (`None` in the epilogue). An
    edge from `a` to `b` means that `b` cannot happen before `a`; its attribute `why` is one of

    - `program`: the stage executes its instructions in order;
    - `data`: the message comes from the other stage;
    - `rendezvous`: a send ends only when the other stage receives (with buffered sends: has made
      room by receiving an earlier message);
    - `queue`: transfers end in the order in which they were issued, per stage or per channel;
    - `collective`: all stages have to enter a collective before anyone leaves it.

    A transfer without a counterpart gets no edge, which is a matter for `check`.

    Args:
        plan: Any plan.
        transport: What the transfers may rely on; default: the strictest model.
    """
    transport = transport or TransportModel()
    graph: nx.DiGraph[Event] = nx.DiGraph()
    programs = {program.stage_id: program for program in plan.programs}
    ahead = {
        program.stage_id: _queue_predecessors(program, transport) for program in programs.values()
    }
    for program in programs.values():
        _add_program(graph, program, ahead[program.stage_id])
    for channel, traffic in channels(programs.values()).items():
        for number, (send, receive) in enumerate(
            zip(traffic.sends, traffic.receives, strict=False)
        ):
            sender, receiver = (channel.source, send.offset), (channel.destination, receive.offset)
            _add_wait(graph, receiver, sender, "data", ahead)
            if transport.buffered_sends == 0:
                _add_wait(graph, sender, receiver, "rendezvous", ahead)
            elif number >= transport.buffered_sends:
                room = traffic.receives[number - transport.buffered_sends]
                taken = Event(channel.destination, room.offset, "end")
                graph.add_edge(taken, Event(*sender, "end"), why="rendezvous")
    _add_collectives(graph, list(programs.values()))
    return graph


Ahead = dict[int, dict[int, int]]
"""By stage: for a transfer that queues behind a posted one, the offset of that posted one."""


def _add_wait(
    graph: "nx.DiGraph[Event]",
    waiter: tuple[int, int],
    other: tuple[int, int],
    why: Why,
    ahead: Ahead,
) -> None:
    """One end of a transfer ends after the other has started, so after what that queues behind.

    Both ends are given as stage and offset.
    """
    end = Event(*waiter, "end")
    graph.add_edge(Event(*other, "start"), end, why=why)
    stage_id, offset = other
    if (before := ahead[stage_id].get(offset)) is not None:
        graph.add_edge(Event(stage_id, before, "end"), end, why="queue")


def _add_program(graph: "nx.DiGraph[Event]", program: StageProgram, ahead: dict[int, int]) -> None:
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
    for offset, posted in ahead.items():
        left, right = Event(program.stage_id, posted, "end"), Event(program.stage_id, offset, "end")
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


def _queue_predecessors(program: StageProgram, transport: TransportModel) -> dict[int, int]:
    """For each transfer that is issued behind a posted one: the offset of that posted one."""
    ahead: dict[int, int] = {}
    last: dict[object, Placed] = {}
    for placed in program.placed():
        instruction = placed.instruction
        if not is_transfer(instruction):
            continue
        channel = (instruction.direction, instruction.peer)
        queue = channel if transport.queue == "channel" else None
        if queue in last and _phase(last[queue]) is Phase.POST:
            ahead[placed.offset] = last[queue].offset
        last[queue] = placed
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
