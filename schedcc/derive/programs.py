"""The programs of all ranks, from a schedule's picture.

A step of a rank is, in this order: a load, where the stage is first or last; the hand-over between
two of its own stages; its transfers, slot by slot; a forward. An activation travels in the step
behind its forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from schedcc.derive.forwards import Forwards
from schedcc.derive.transfers import slots
from schedcc.table.codes import CODES, FIELDS, NONE, Ints
from schedcc.table.rows import Rows
from schemas import (
    CopyActivation,
    ForwardPass,
    LoadMicroBatch,
    PlanHeader,
    RecvActivation,
    SendActivation,
)

_LOAD, _FORWARD, _SEND, _RECV, _COPY = (
    CODES[op]
    for op in (LoadMicroBatch, ForwardPass, SendActivation, RecvActivation, CopyActivation)
)


@dataclass(frozen=True, eq=False)
class Programs:
    """What is derived: the steps of every rank."""

    schedule: str
    placement: tuple[int, ...]
    """The rank of each stage."""
    micro_batches: int
    steps: int
    num_buffers: int
    rows: Sequence[Rows]
    """`[ranks]`: the instructions of the steps."""

    @property
    def ranks(self) -> int:
        """R."""
        return len(self.rows)

    def header(self) -> PlanHeader:
        """What the programs are for."""
        return PlanHeader.model_construct(
            format="",
            schedule=self.schedule,
            micro_batches=self.micro_batches,
            stages=len(self.placement),
            ranks=self.ranks,
            placement=self.placement,
            num_buffers=self.num_buffers,
        )


class _Column:
    """Rows in the making: one kind of instruction, with the rank and the place within a step."""

    def __init__(
        self, code: int, rank: Ints, order: Ints | int, step: Ints, **fields: Ints
    ) -> None:
        self.rank, self.order = rank, np.broadcast_to(np.asarray(order), rank.shape)
        nothing = np.full(len(rank), NONE, dtype=np.int64)
        columns = {name: fields.get(name, nothing) for name in FIELDS}
        self.rows = Rows(op=np.full(len(rank), code, dtype=np.int64), step=step, **columns)


def blocking_programs(forwards: Forwards, num_buffers: int) -> Programs:
    """The programs of a picture, with whole transfers.

    Args:
        forwards: The picture.
        num_buffers: Of each stage, see `schedcc.derive.buffers`.
    """
    stages, count = forwards.step.shape
    placement = forwards.placement
    stage, micro_batch = (index.ravel() for index in np.indices((stages, count)))
    step, rank, buffer = forwards.step.ravel(), placement[stage], micro_batch % num_buffers
    ends = (stage == 0) | (stage == stages - 1)
    parts = [
        _Column(
            _LOAD, rank[ends], 0, step[ends],
            stage=stage[ends], micro_batch=micro_batch[ends], buffer=buffer[ends],
        ),
        _Column(_FORWARD, rank, _LAST, step, stage=stage, micro_batch=micro_batch, buffer=buffer),
    ]  # fmt: skip
    handed_on = stage < stages - 1
    source, travels = stage[handed_on], step[handed_on] + 1
    what = {"micro_batch": micro_batch[handed_on], "buffer": buffer[handed_on]}
    from_rank, to_rank = placement[source], placement[source + 1]
    own = from_rank == to_rank
    parts.append(
        _Column(
            _COPY, to_rank[own], 1, travels[own], stage=source[own] + 1, peer=source[own],
            peer_buffer=what["buffer"][own], **{name: of[own] for name, of in what.items()},
        )
    )  # fmt: skip
    apart = ~own
    what = {name: of[apart] for name, of in what.items()}
    source, travels = source[apart], travels[apart]
    from_rank, to_rank = from_rank[apart], to_rank[apart]
    slot, most = slots(from_rank, to_rank, travels, forwards.ranks)
    order = 2 + slot
    parts += [
        _Column(_SEND, from_rank, order, travels, stage=source, peer=source + 1, **what),
        _Column(_RECV, to_rank, order, travels, stage=source + 1, peer=source, **what),
    ]
    assert most + 2 < _LAST
    return Programs(
        schedule=forwards.schedule,
        placement=tuple(placement.tolist()),
        micro_batches=count,
        steps=forwards.steps,
        num_buffers=num_buffers,
        rows=_by_rank(parts, forwards.ranks),
    )


_LAST = 2**40
"""Place of the forward in its step: behind all slots."""


def _by_rank(parts: list[_Column], ranks: int) -> list[Rows]:
    rank, order = (np.concatenate([getattr(p, c) for p in parts]) for c in ("rank", "order"))
    rows = Rows.joined([part.rows for part in parts])
    sorting = np.lexsort((order, rows.step, rank))
    rows, rank = rows[sorting], rank[sorting]
    bounds = np.searchsorted(rank, np.arange(ranks + 1)).tolist()
    return [rows[begin:end] for begin, end in pairwise(bounds)]
