"""The transports of the reference executor: queues of transfers, and boxes for buffered sends."""

from collections import defaultdict
from dataclasses import dataclass, field

from schemas import TransferInstruction, TransportModel

PlaceKey = tuple[int, int, str]
"""Stage, buffer and name of a place."""


@dataclass
class End:
    """One end of a transfer, from its post to its end."""

    rank: int
    peer_rank: int
    instruction: TransferInstruction
    key: PlaceKey
    """The place from or to which it moves."""
    payload: str = ""
    done: bool = False
    group: list["End"] = field(default_factory=list)
    """What is waited for together with it: the members of its group."""

    @property
    def waited_for(self) -> bool:
        """Whether a wait for it ends: a group is waited for as a whole."""
        return self.done and all(member.done for member in self.group)

    @property
    def sends(self) -> bool:
        """Whether it is the end that sends."""
        return "Send" in self.instruction.op

    @property
    def channel(self) -> tuple[int, int]:
        """The rank that sends, and the rank that receives."""
        ends = (self.rank, self.peer_rank)
        return ends if self.sends else ends[::-1]


class Network:
    """All queues of all ranks. Only what is at the head of its queue can end."""

    def __init__(self, transport: TransportModel) -> None:
        self.transport = transport
        self.queues: defaultdict[tuple[object, ...], list[list[End]]] = defaultdict(list)
        self.boxes: defaultdict[tuple[int, int], list[str]] = defaultdict(list)

    def issue(self, ends: list[End]) -> None:
        """Queue up a transfer, or a group of them as one entry.

        Where every channel has a queue of its own, a group is an entry in each of its channels'.
        """
        entries: defaultdict[tuple[object, ...], list[End]] = defaultdict(list)
        for end in ends:
            end.group = ends
            per_channel = (end.rank, end.sends, end.channel)
            entries[(end.rank,) if self.transport.queue == "stage" else per_channel].append(end)
        for queue, entry in entries.items():
            self.queues[queue].append(entry)

    def progress(self) -> bool:
        """End what can end now; tell whether anything could."""
        any_ended = False
        while self._end_one():
            any_ended = True
        return any_ended

    def _end_one(self) -> bool:
        active = self._active()
        for (channel, sends), end in active.items():
            box = self.boxes[channel]
            if self.transport.buffered_sends == 0:
                receive = active.get((channel, False))
                if not sends or receive is None:
                    continue
                receive.payload = end.payload
                receive.done = True
            elif sends and len(box) < self.transport.buffered_sends:
                box.append(end.payload)
            elif not sends and box:
                end.payload = box.pop(0)
            else:
                continue
            end.done = True
            return True
        return False

    def _active(self) -> dict[tuple[tuple[int, int], bool], End]:
        """What may end: of each queue's head, the first transfer of each channel and direction."""
        active: dict[tuple[tuple[int, int], bool], End] = {}
        for queue in self.queues.values():
            while queue and all(end.done for end in queue[0]):
                del queue[0]
            for end in queue[0] if queue else ():
                if not end.done:
                    active.setdefault((end.channel, end.sends), end)
        return active
