"""From rows to instructions: the frozen objects that plans are made of."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from schedcc.table import IS_PAIRED, OPS, Rows
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
        columns = (column.tolist() for column in rows.columns[:4])
        return [self._instruction(*row) for row in zip(*columns, strict=True)]

    def _instruction(self, code: int, micro_batch: int, buffer: int, peer: int) -> StepInstruction:
        if _PAIRED[code]:
            return _new(code, {"micro_batch": micro_batch, "buffer": buffer, "peer": peer})
        key = (code, micro_batch, buffer)
        instruction = self._shared.get(key)
        if instruction is None:
            fields = {"micro_batch": micro_batch, "buffer": buffer}
            instruction = _new(code, {k: v for k, v in fields.items() if k in _FIELDS[code]})
            self._shared[key] = instruction
        return instruction


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


_PAIRED: list[bool] = IS_PAIRED.tolist()
_FIELDS = [set(op.model_fields) for op in OPS]
_VALIDATORS: list[Any] = [op.__pydantic_validator__.validate_python for op in OPS]


def _new(code: int, fields: dict[str, int]) -> StepInstruction:
    instruction: StepInstruction = _VALIDATORS[code](fields)
    return instruction
