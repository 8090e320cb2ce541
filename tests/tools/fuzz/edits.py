"""Random edits of files: of their bytes, of their values, of their lines, of their numbers."""

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple


class Seed(NamedTuple):
    """A valid file."""

    suffix: str
    content: bytes


BYTES = (
    *(bytes([code]) for code in b'{}[]":,-.0159eEF\\/ \n\t\x00\x7f\xc3\xff'),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e400", b"-0", b"0x1", b"\\ud800", b"\\u0000"),
    *(b"[" * 300, b'{"a":' * 300, b"9" * 25, b"9" * 5000, b"\xef\xbb\xbf", b"0SEND_F9", b"1F"),
)
"""What an edit of bytes puts into a file."""


def edited_bytes(content: bytes, random: Random, others: list[Seed]) -> bytes:
    """`content` with some bytes changed, lost, repeated, put in, or taken from another file."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        start = random.randrange(len(content) + 1)
        stop = min(len(content), start + random.choice((0, 1, 1, 2, 8, 60)))
        other = random.choice(others).content
        begin = random.randrange(len(other))
        new = random.choice(
            (
                b"",
                random.choice(BYTES),
                content[start:stop] * random.choice((2, 2, 50)),
                bytes([random.randrange(256)]),
                other[begin : begin + random.choice((1, 20, 400))],
            )
        )
        content = content[:start] + new + content[stop:]
    return content if random.random() < 0.95 else content[: random.randrange(len(content) + 1)]


def values(random: Random) -> Any:
    """Something that a file may hold in the wrong place."""
    deep: Any = 0
    for _ in range(random.choice((1, 5, 150, 400))):
        deep = random.choice(([deep], {"a": deep}))
    return random.choice(
        (
            *(None, True, False, 0, 1, 2, 3, -1, -(10**18), 10**9, 2**31, 2**63, 2**64, 10**400),
            *(
                0.0,
                1.0,
                -0.5,
                1e308,
                "",
                "1",
                "ForwardPass",
                "schedcc.plan/1",
                "schedcc.plan/2",
                "é\n\u2028" * 9,
            ),
            *([], {}, [[]], [0] * 50, {"op": "ForwardPass"}, {"op": None}, deep),
            {"op": "BroadcastLoss", "source": random.choice((0, 10**30))},
            {"op": random.choice(("GroupStart", "GroupEnd"))},
        )
    )


def containers(data: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """Every object and list that is not empty."""
    if isinstance(data, dict | list) and data:
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from containers(value)


AGAIN = "\u200b"
"""Tells a key from itself while it is in an object, and is taken out of the file."""
HEADER = (
    *("micro_batches", "stages", "ranks", "placement", "num_buffers", "rank", "stage_id"),
    *("format", "schedule"),
)


def edited_values(content: bytes, random: Random, keys: Sequence[str] = HEADER) -> bytes:
    """JSON with some values changed, lost, repeated, moved or under another key.

    Args:
        content: The JSON.
        random: Decides.
        keys: Those of the outermost object that are changed most of the time.
    """
    data = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        everything = list(containers(data))
        if not everything:
            break
        place = data if random.random() < 0.15 else random.choice(everything)
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if place is data and isinstance(data, dict) and random.random() < 0.7:
            key = random.choice(keys)
        edit: Callable[[Any, Any, Random, Any], None] = random.choice(EDITS)
        edit(place, key, random, random.choice(everything))
    if isinstance(data, dict) and random.random() < 0.1:  # a key that comes twice
        data[random.choice([*data, "x"]) + AGAIN] = values(random)
    return json.dumps(data, ensure_ascii=False).replace(AGAIN, "").encode()


def _replace(place: Any, key: Any, random: Random, _: Any) -> None:
    place[key] = values(random)


def _renumber(place: Any, _: Any, random: Random, __: Any) -> None:
    numbers = [k for k in place if isinstance(place[k], int)] if isinstance(place, dict) else []
    if numbers:
        place[random.choice(numbers)] = random.choice((0, 1, 1, 2, 3, 5, -1, 10**9, 10**25))


def _lose(place: Any, key: Any, _: Random, __: Any) -> None:
    if isinstance(place, dict):
        place.pop(key, None)
    else:
        del place[key]


def _add(place: Any, key: Any, random: Random, other: Any) -> None:
    new = random.choice((values(random), json.loads(json.dumps(other))))
    if isinstance(place, dict):
        place[random.choice(("x", "", "op", "peer", "a\nb", str(key) + " "))] = new
    else:
        place.insert(random.randint(0, len(place)), new)


def _repeat(place: Any, key: Any, random: Random, _: Any) -> None:
    if isinstance(place, list):
        place[key:key] = [place[key]] * random.choice((1, 1, 3, 200))


def _swap(place: Any, key: Any, random: Random, _: Any) -> None:
    if isinstance(place, list):
        other = random.randrange(len(place))
        place[key], place[other] = place[other], place[key]


EDITS = (_replace, _lose, _add, *(_renumber, _repeat, _swap) * 4)
"""Mostly those after which the file may still be a plan."""


def edited_json(
    content: bytes, random: Random, others: list[Seed], keys: Sequence[str] = HEADER
) -> bytes:
    """JSON with some values or bytes changed."""
    if random.random() < 0.4:
        return edited_bytes(content, random, others)
    return edited_values(content, random, keys)


NUMBERS = (0, 1, 9, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def edited_numbers(content: bytes, random: Random, others: list[Seed]) -> bytes:
    """`content` with some bytes changed, and often with a number of 8 bytes of any size."""
    content = edited_bytes(content, random, others)
    if random.random() < 0.5 and len(content) > 8:
        at = random.randrange(len(content) - 8)
        content = content[:at] + struct.pack("<Q", random.choice(NUMBERS)) + content[at + 8 :]
    return content


def edited_lines(
    content: bytes, random: Random, others: list[Seed], keys: Sequence[str] = HEADER
) -> bytes:
    """`content` with some lines changed, lost, repeated or moved."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        number = random.randrange(len(lines))
        other = random.randrange(len(lines))
        match random.randrange(5):
            case 0 if len(lines) > 1:
                del lines[number]
            case 1:
                lines[number:number] = [lines[number]] * random.choice((1, 3, 100))
            case 2:
                lines[number], lines[other] = lines[other], lines[number]
            case 3 if lines[number]:
                lines[number] = edited_bytes(lines[number], random, others)
            case _ if lines[number].startswith(b"{"):
                with contextlib.suppress(ValueError):
                    lines[number] = edited_values(lines[number], random, keys)
    return b"\n".join(lines)
