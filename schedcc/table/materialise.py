"""From rows to instructions: the frozen objects that plans are made of."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from schedcc.table.table import IS_PAIRED, OPS, Rows
from schemas import Step, StepInstruction


class Materialiser:
    """Makes the steps of programs; equal instructions without a peer are one object.

    Of a pipeline's instructions, the forwards and loads are the same on every stage.
    """

    def __init__(self) -> None:
        self._shared: dict[tuple[int, int, int], StepInstruction] = {}

    def steps(self, rows: Rows, first: int, stop: int) -> tuple[Step, ...]:
        """Steps `first` to `stop` - 1 of a program; `rows` are theirs, in order."""
        made = self._instructions(rows)
        bounds = np.searchsorted(rows.step, np.arange(first, stop + 1)).tolist()
        return tuple(tuple(made[begin:end]) for begin, end in pairwise(bounds))

    def _instructions(self, rows: Rows) -> list[StepInstruction]:
        made: dict[int, Iterator[StepInstruction]] = {}
        for code in np.unique(rows.op).tolist():
            own = rows.op == code
            make = _paired if IS_PAIRED[code] else self._alike
            made[code] = iter(make(code, *(column[own].tolist() for column in rows.columns[1:4])))
        return [next(made[code]) for code in rows.op.tolist()]

    def _alike(
        self, code: int, micro_batches: list[int], buffers: list[int], _: list[int]
    ) -> list[StepInstruction]:
        """Instructions without a peer, one object for those that are equal."""
        shared, made = self._shared, []
        for micro_batch, buffer in zip(micro_batches, buffers, strict=True):
            key = (code, micro_batch, buffer)
            if key not in shared:
                fields = {"micro_batch": micro_batch, "buffer": buffer}
                own = {name: fields[name] for name in fields if name in OPS[code].model_fields}
                shared[key] = _VALIDATORS[code](own)
            made.append(shared[key])
        return made


def _paired(
    code: int, micro_batches: list[int], buffers: list[int], peers: list[int]
) -> list[StepInstruction]:
    """Transfers, of which each has a peer of its own."""
    new = _VALIDATORS[code]
    return [
        new({"micro_batch": micro_batch, "buffer": buffer, "peer": peer})
        for micro_batch, buffer, peer in zip(micro_batches, buffers, peers, strict=True)
    ]


@contextmanager
def collection_paused() -> Iterator[None]:
    """Make many objects that stay without looking for garbage among them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_VALIDATORS: list[Any] = [op.__pydantic_validator__.validate_python for op in OPS]
