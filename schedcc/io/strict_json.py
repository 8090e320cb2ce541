"""JSON in which every key of an object stands once; of two, parsers silently take either."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from pydantic_core import from_json


class RepeatedKeyError(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str, place: tuple[str | int, ...]) -> None:
        """Of the object at `place`: keys and positions from the outermost object inwards."""
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key, self.place = key, place


def parse(content: bytes) -> object:
    """The value of a JSON document, without NaN and infinity.

    Raises:
        RepeatedKeyError: an object has a key twice.
        ValueError: the document is no JSON.
    """
    value: object = from_json(content, allow_inf_nan=False)
    # Outside of strings, a colon stands behind each key and nowhere else.
    if content.count(b":") == _keys(value):
        return value
    try:
        json.loads(content, object_pairs_hook=_require_once)
    except _RepeatedSomewhereError:
        # Only now is it worth keeping all pairs, to say where.
        key, place = next(_repeated(json.loads(content, object_pairs_hook=_Pairs), ()))
        raise RepeatedKeyError(key, place) from None
    return value


def _keys(value: object) -> int:
    """The keys of all objects in a document."""
    keys, level = 0, [value]
    while level:
        objects = [part for part in level if type(part) is dict]
        keys += sum(map(len, objects))
        inside: list[Iterable[object]] = [
            chain.from_iterable(part for part in level if type(part) is list)
        ]
        inside += [part.values() for part in objects]
        level = [part for part in chain.from_iterable(inside) if type(part) in (dict, list)]
    return keys


class _RepeatedSomewhereError(Exception):
    pass


class _Pairs(list[tuple[str, object]]):
    """An object as it is written."""


def _require_once(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _RepeatedSomewhereError


def _repeated(
    value: object, place: tuple[str | int, ...]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Keys that stand twice, each with the place of its object."""
    inside: list[tuple[str | int, object]] = []
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, _ in value:
            if key in seen:
                yield key, place
            seen.add(key)
        inside = [*value]
    elif isinstance(value, list):
        inside = [*enumerate(value)]
    for part, held in inside:
        yield from _repeated(held, (*place, part))
