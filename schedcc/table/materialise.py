"""From rows to instructions: the frozen objects that plans are made of."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import Any

import numpy as np
from pydantic import BaseModel

from schedcc.table.table import FIELDS, OPS, Rows
from schemas import Step, StepInstruction


def steps_of(rows: Rows, first: int, stop: int) -> tuple[Step, ...]:
    """Steps `first` to `stop` - 1 of a program; `rows` are theirs, in order."""
    made = _instructions(rows)
    bounds = np.searchsorted(rows.step, np.arange(first, stop + 1)).tolist()
    return tuple(tuple(made[begin:end]) for begin, end in pairwise(bounds))


def _instructions(rows: Rows) -> list[StepInstruction]:
    made: dict[int, Iterator[StepInstruction]] = {}
    columns = dict(zip(("op", *FIELDS), rows.columns, strict=False))
    for code in np.unique(rows.op).tolist():
        own = rows.op == code
        fields = [name for name in FIELDS if name in OPS[code].model_fields]
        values = zip(*(columns[name][own].tolist() for name in fields), strict=True)
        made[code] = map(_maker(code, fields), values) if fields else repeat(OPS[code]())
    return [next(made[code]) for code in rows.op.tolist()]


def _maker(code: int, fields: list[str]) -> Callable[[tuple[int, ...]], StepInstruction]:
    """What makes instructions of one class from the values of their fields, unchecked.

    The rows are the compiler's own. It is what `model_construct` does, without looking anything up.
    """
    op: Any = OPS[code]
    new, given = op.__new__, set(fields)  # which nobody changes: instructions are frozen
    name = op.model_fields["op"].default

    def make(values: tuple[int, ...]) -> StepInstruction:
        instruction = new(op)
        _SET_FIELDS(instruction, {"op": name, **dict(zip(fields, values, strict=True))})
        _SET_GIVEN(instruction, given)
        _SET_EXTRA(instruction, None)
        _SET_PRIVATE(instruction, None)
        return instruction  # type: ignore[no-any-return]

    return make


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


_SET_FIELDS, _SET_GIVEN, _SET_EXTRA, _SET_PRIVATE = (
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)
