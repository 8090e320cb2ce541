"""What has to happen before what, and why: the edges of the dependency graph, as arrays.

The one place that knows the rules. `schedcc.analysis.graph` makes a networkx graph of the edges,
and `schedcc.analysis.levels` sorts and times them as they are.

Every row `r` of a table has two events, its start `2 r` and its end `2 r + 1`; barriers follow. By
default the model of execution is the strictest that a transport may have: one in-order queue of
transfers per rank, and rendezvous (a send ends only with its receive). Under it both ends of a
transfer end together, after both have started and after all that is ahead of either in its queue::

    rank 0     start(send) ──program──> end(send) ──program──> start of the next instruction
                    └──────data───────┐  ^
                    ┌───rendezvous────│──┘
    rank 1     start(recv) ──program──> end(recv) ──program──> start of the next instruction

A posted transfer lets its program go on from its start; its end is what the wait waits for. Posts
in a group start where the group ends, and the group is one entry of the queue.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from schedcc.table.channels import collectives
from schedcc.table.codes import (
    IS_GROUP_END,
    IS_GROUP_START,
    IS_POST,
    IS_SEND,
    IS_TRANSFER,
    Ints,
    lookup,
)
from schedcc.table.rows import same_as_before
from schedcc.table.table import PlanTable
from schemas import HandOver, ResultInstruction, TransportModel

Why = Literal["program", "data", "rendezvous", "queue", "collective", "barrier"]

_IS_COLLECTIVE = lookup(lambda op: issubclass(op, HandOver))
_IS_OVER_REPLICAS = lookup(lambda op: issubclass(op, ResultInstruction) and op.over_replicas)


class Edges(NamedTuple):
    """Edges of one kind: `target[i]` cannot happen before `source[i]`."""

    source: Ints
    target: Ints
    why: Why


@dataclass(frozen=True, eq=False)
class Dependencies:
    """The dependency graph of a table's programs."""

    table: PlanTable
    edges: tuple[Edges, ...]
    barriers: int
    """The barrier after step `k` is event `2 rows + k`."""

    @property
    def events(self) -> int:
        """The number of events."""
        return 2 * len(self.table.rows) + self.barriers


def dependencies(table: PlanTable, transport: TransportModel) -> Dependencies:
    """The edges between the events of a table, under a model of the transport.

    A transfer whose counterpart is not in the table gets no edge.
    """
    queues = _Queues.of(table, transport)
    edges = [
        *_program_edges(table),
        *_wait_edges(table, queues),
        *queues.edges(table),
        *_transfer_edges(table, queues, transport),
        *_collective_edges(table),
    ]
    barriers = 0
    if transport.step_barrier:
        barriers = max(0, int(table.rows.step.max(initial=0)))
        edges += _barrier_edges(table, barriers)
    return Dependencies(table, tuple(edges), barriers)


def starts(rows: Ints) -> Ints:
    """The events at which rows start."""
    return 2 * rows


def ends(rows: Ints) -> Ints:
    """The events at which rows end."""
    return 2 * rows + 1


def goes_on(table: PlanTable) -> Ints:
    """`[rows]`: the event after which a program goes on: a post only starts its transfer."""
    rows, op = np.arange(len(table.rows)), table.rows.op
    return np.where(IS_POST[op] | IS_GROUP_END[op], starts(rows), ends(rows))


def _program_edges(table: PlanTable) -> Iterator[Edges]:
    rows = np.arange(len(table.rows))
    # All replicas run the same plan: what they do together, each does with its own likeness.
    together = _IS_OVER_REPLICAS[table.rows.op]
    yield Edges(starts(rows[~together]), ends(rows[~together]), "program")
    yield Edges(starts(rows[together]), ends(rows[together]), "collective")
    next_rows = rows[table.follows]
    yield Edges(goes_on(table)[next_rows - 1], starts(next_rows), "program")


@dataclass(frozen=True, eq=False)
class _Queues:
    """Where transfers stand in the queues of their rank."""

    group: Ints
    """`[rows]`: the row that ends the group of a post; `NONE` outside of groups."""
    entry: Ints
    """`[rows]`: the row that stands for a transfer's entry of its queue: that of its group."""
    issue: Ints
    """`[rows]`: the event at which a transfer is issued."""
    ahead: Ints
    """`[rows]`: the event after which a transfer behind a posted one can begin; -1: none."""

    @classmethod
    def of(cls, table: PlanTable, transport: TransportModel) -> "_Queues":
        rows, op = np.arange(len(table.rows)), table.rows.op
        group = _groups(table)
        grouped = group >= 0
        entry = np.where(grouped, group, rows)
        issue = starts(entry)
        transfers = rows[IS_TRANSFER[op]]
        if transport.queue == "channel":
            channel = (table.peer_rank, IS_SEND[op], table.program)
            order = transfers[np.lexsort([column[transfers] for column in channel])]
            same = same_as_before(order, *channel)
        else:
            order = transfers
            same = same_as_before(order, table.program)
        ahead = np.full(len(rows), -1)
        # The members of an entry share what is ahead of it: the entry before their first one.
        opens = np.ones(len(order), dtype=bool)
        opens[1:] = (entry[order[1:]] != entry[order[:-1]]) | ~same[1:]
        first = np.maximum.accumulate(np.where(opens, np.arange(len(order)), 0))
        before = np.where(same[first], order[np.maximum(first - 1, 0)], -1)
        posted = (before >= 0) & IS_POST[op[before]]
        # A group that spreads over several queues is in each of them an entry of its members there,
        # of which the last to be issued is the last to end: they go to and come from one rank.
        last = before[posted] if transport.queue == "channel" else entry[before[posted]]
        ahead[order[posted]] = ends(last)
        return cls(group, entry, issue, ahead)

    def edges(self, table: PlanTable) -> Iterator[Edges]:
        """What is ahead of a transfer ends first; a group ends when all of its members have."""
        rows = np.arange(len(table.rows))
        behind, member = rows[self.ahead >= 0], rows[self.group >= 0]
        yield Edges(self.ahead[behind], ends(behind), "queue")
        yield Edges(ends(member), ends(self.group[member]), "queue")


def _groups(table: PlanTable) -> Ints:
    """`[rows]`: for a post in a group that is closed in its program, the row that closes it."""
    rows, op = np.arange(len(table.rows)), table.rows.op
    bracket = IS_GROUP_START[op] | IS_GROUP_END[op]
    group = np.full(len(rows), -1)
    brackets = rows[bracket]
    if len(brackets) == 0:
        return group
    after = np.searchsorted(brackets, rows)
    inside = IS_POST[op] & (after > 0) & (after < len(brackets))
    opening = brackets[np.maximum(after - 1, 0)]
    closing = brackets[np.minimum(after, len(brackets) - 1)]
    inside &= IS_GROUP_START[op[opening]] & IS_GROUP_END[op[closing]]
    inside &= (table.program[opening] == table.program) & (table.program[closing] == table.program)
    group[inside] = closing[inside]
    return group


def _wait_edges(table: PlanTable, queues: _Queues) -> Iterator[Edges]:
    """A wait ends after the latest post of its stages, micro-batch, direction, or its group."""
    post, wait = table.splits
    ended = ends(np.where(queues.group[post] >= 0, queues.group[post], post))
    sends = IS_SEND[table.rows.op[wait]]
    yield Edges(ended[sends], ends(wait[sends]), "rendezvous")
    yield Edges(ended[~sends], ends(wait[~sends]), "data")


def _transfer_edges(
    table: PlanTable, queues: _Queues, transport: TransportModel
) -> Iterator[Edges]:
    """The k-th send of a channel meets its k-th receive."""
    send, receive, number = table.matched
    yield Edges(queues.issue[send], ends(receive), "data")
    yield from _ahead_of(send, receive, queues)
    if transport.buffered_sends > 0:
        # A later send needs the room of an earlier message: pairs are in order of channel, number.
        # Where the receives of both are in one group, it does not: its own stands ready as soon.
        late = np.flatnonzero(number >= transport.buffered_sends)
        room, own = receive[late - transport.buffered_sends], receive[late]
        together = queues.entry[room] == queues.entry[own]
        yield Edges(ends(room[~together]), ends(send[late[~together]]), "rendezvous")
        send, receive = send[late[together]], own[together]
    yield Edges(queues.issue[receive], ends(send), "rendezvous")
    yield from _ahead_of(receive, send, queues)


def _ahead_of(other: Ints, waiter: Ints, queues: _Queues) -> Iterator[Edges]:
    """One end of a transfer also waits for what is ahead of the other end in its queue."""
    held_up = queues.ahead[other] >= 0
    yield Edges(queues.ahead[other[held_up]], ends(waiter[held_up]), "queue")


def _collective_edges(table: PlanTable) -> Iterator[Edges]:
    """All its ranks enter a collective before anyone leaves it: all wait for its first member."""
    rows = np.flatnonzero(_IS_COLLECTIVE[table.rows.op]).tolist()
    entered = [(p, i) for p, e in enumerate(table.epilogues) for i in collectives(e)]
    groups: defaultdict[range, defaultdict[int, list[int]]]
    groups = defaultdict(lambda: defaultdict(list))
    for row, (program, instruction) in zip(rows, entered, strict=True):
        groups[instruction.members(table.ranks, table.rank_of_one)][program].append(row)
    ranks = table.rank_ids.tolist()
    for members, by_program in groups.items():
        present = [by_program[p] for p, rank in enumerate(ranks) if rank in members]
        for first, *others in zip(*present, strict=False):
            others_ = np.array(others, dtype=np.int64)
            meeting = np.full(len(others_), ends(first))
            yield Edges(starts(others_), meeting, "collective")
            yield Edges(meeting, ends(others_), "collective")


def _barrier_edges(table: PlanTable, barriers: int) -> Iterator[Edges]:
    """Nobody begins a step before everybody has come to the end of the step before it."""
    rows, step = np.arange(len(table.rows)), table.rows.step
    barrier = 2 * len(rows) + np.arange(barriers)
    yield Edges(barrier[:-1], barrier[1:], "barrier")
    in_step = step >= 0
    is_first = in_step & ~(table.follows & (np.roll(step, 1) == step))
    is_last = in_step & ~(np.roll(table.follows, -1) & (np.roll(step, -1) == step))
    first, last = rows[is_first & (step > 0)], rows[is_last & (step < barriers)]
    yield Edges(barrier[step[first] - 1], starts(first), "barrier")
    yield Edges(goes_on(table)[last], barrier[step[last]], "barrier")
