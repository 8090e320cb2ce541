"""Lines that are what nearly all are: the start and the end of what the plan has, in turn.

Read thousands at a time, as one JSON document. Whatever is not exactly that is left to the models
of `schemas.recording`, to which this makes no difference but in speed.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from pydantic_core import from_json

from schedcc.table.codes import NONE

Planned = tuple[int | None, dict[str, Any]]
"""The step of an instruction, and its fields with `op`."""

_NAMES_OF_START = ("event", "at", "offset", "step", "instruction")
_NAMES_OF_END = ("event", "at", "offset")
_STARTS, _ENDS = itemgetter(*_NAMES_OF_START), itemgetter(*_NAMES_OF_END)
_MOST = 2**61  # as `schemas.recording.Number`


class Pairs(NamedTuple):
    """What was entered and left: the columns of `Executions`."""

    offset: tuple[int, ...]
    start: list[int]
    end: list[int]
    nbytes: list[int]


def executed_pairs(block: bytes, lines: int, planned: list[Planned], origin: int) -> Pairs | None:
    """What the lines say, if they are starts and ends in turn of what a program has.

    Args:
        block: Whole lines, each of which begins with `{"event":"start"` or `{"event":"end"`. So
            none can be the continuation of another: nothing in such an event holds a list.
        lines: Their number, which is even.
        planned: The program.
        origin: Time of the header.
    """
    try:
        document = b"[" + block[:-1].replace(b"\n", b",") + b"]"
        events = from_json(document, allow_inf_nan=False)
        if len(events) != lines:
            return None
        starts, ends = events[::2], events[1::2]
        event, at, offset, step, instruction = zip(*map(_STARTS, starts), strict=True)
        last_event, end_at, end_offset = zip(*map(_ENDS, ends), strict=True)
        moved = [end.get("bytes") for end in ends]
        with_bytes = sum("bytes" in end for end in ends)
        if (
            set(event) != {"start"}
            or set(last_event) != {"end"}
            or set(map(len, starts)) != {len(_NAMES_OF_START)}
            or sum(map(len, ends)) != len(_NAMES_OF_END) * len(ends) + with_bytes
            or offset != end_offset
            or not _are_numbers(chain(at, offset, end_at))
            or not _are_numbers(number for number in chain(step, moved) if number is not None)
            or not {int, str}.issuperset(
                map(type, chain.from_iterable(map(dict.values, instruction)))
            )
            or [planned[number] for number in offset] != list(zip(step, instruction, strict=True))
        ):
            return None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return Pairs(
        offset,
        [origin + number for number in at],
        [origin + number for number in end_at],
        [NONE if number is None else number for number in moved],
    )


def _values(instructions: Iterable[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, instructions))


def _are_numbers(values: Any) -> bool:
    numbers = list(values)
    if not {int}.issuperset(map(type, numbers)):
        return False
    return not numbers or (min(numbers) >= 0 and max(numbers) < _MOST)
