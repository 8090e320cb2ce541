"""From rows to instructions: the frozen objects that plans are made of."""

import gc
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import Any

import numpy as np
from pydantic import BaseModel

from schedcc.table.codes import FIELDS, OPS
from schedcc.table.rows import Rows
from schemas import Step, StepInstruction


def steps_of(rows: Rows, first: int, stop: int) -> tuple[Step, ...]:
    """Steps `first` to `stop` - 1 of a program; `rows` are theirs, in order."""
    made = _instructions(rows)
    bounds = np.searchsorted(rows.step, np.arange(first, stop + 1)).tolist()
    return tuple(tuple(made[begin:end]) for begin, end in pairwise(bounds))


def _instructions(rows: Rows) -> list[StepInstruction]:
    if not len(rows):
        return []
    made: list[StepInstruction] = []  # one class after the other
    order = np.argsort(rows.op, kind="stable")
    by_class = rows[order]
    codes, first = np.unique(by_class.op, return_index=True)
    columns = dict(zip(("op", *FIELDS), by_class.columns, strict=False))
    for code, begin, end in zip(codes.tolist(), first, [*first[1:], len(rows)], strict=True):
        given = {name for name in FIELDS if name in OPS[code].model_fields}
        values = [columns[name][begin:end].tolist() for name in FIELDS if name in given]
        made += _alike(OPS[code], given, values, int(end - begin))
    position = np.empty(len(rows), dtype=np.int64)
    position[order] = np.arange(len(rows))
    return [*map(made.__getitem__, position.tolist())]


def _alike(op: Any, given: set[str], values: list[list[int]], count: int) -> list[Any]:
    """Instructions of one class, unchecked: the rows are the compiler's own.

    What `model_construct` does for one at a time, for all of them at once. They share the set of
    fields that were given, which nobody changes: instructions are frozen.
    """
    name = op.model_fields["op"].default
    fields: Iterable[dict[str, Any]]
    if len(values) == 3:
        fields = (
            {"op": name, "stage": s, "micro_batch": m, "buffer": b}
            for s, m, b in zip(*values, strict=True)
        )
    elif len(values) == 4:
        fields = (
            {"op": name, "stage": s, "micro_batch": m, "buffer": b, "peer": p}
            for s, m, b, p in zip(*values, strict=True)
        )
    else:
        names = [field for field in FIELDS if field in given]
        rows = zip(*values, strict=True) if values else repeat((), count)
        fields = ({"op": name, **dict(zip(names, row, strict=True))} for row in rows)
    instructions = [*map(op.__new__, repeat(op, count))]
    contents: tuple[Iterable[Any], ...] = (fields, repeat(given), repeat(None), repeat(None))
    for setter, values_of in zip(_SETTERS, contents, strict=True):
        deque(map(setter, instructions, values_of), maxlen=0)
    return instructions


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


_SETTERS = tuple(
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)
