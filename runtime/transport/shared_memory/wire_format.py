"""The wire format of local channels: what their two ends send each other over the socket."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FILLED = b"filled"
"""From the sending end: the next message is there."""

LONGEST = 64 * 1024
"""Bytes that a receive descriptor may have."""

_HEAD = struct.Struct("<HH?Q")  # tensors, segments that are gone, joined, segment of the tensors
_PLACE = struct.Struct("<QQ")  # offset, size
_GONE = struct.Struct("<Q")


@dataclass(frozen=True)
class ReceiveDescriptor:
    """From the receiving end: where the next message is to come."""

    segment: int
    """The number of a segment; its descriptor comes along when it is named for the first time."""
    places: Sequence[tuple[int, int]]
    """Offset and size in bytes of each tensor."""
    gone: Sequence[int] = ()
    """Segments that will not be named any more."""
    joined: bool = False
    """Whether there is one place for all tensors, which may be longer than they are."""

    def packed(self) -> bytes:
        """As bytes."""
        head = _HEAD.pack(len(self.places), len(self.gone), self.joined, self.segment)
        places = (_PLACE.pack(offset, size) for offset, size in self.places)
        return b"".join((head, *places, *map(_GONE.pack, self.gone)))

    @staticmethod
    def unpacked(data: memoryview) -> "ReceiveDescriptor":
        """From bytes.

        Raises:
            struct.error: they are none that `packed` makes.
        """
        count, _, joined, segment = _HEAD.unpack_from(data)
        end = _HEAD.size + count * _PLACE.size
        places = list(_PLACE.iter_unpack(data[_HEAD.size : end]))
        return ReceiveDescriptor(segment, places, _first(_GONE.iter_unpack(data[end:])), joined)


def _first(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [row[0] for row in rows]
