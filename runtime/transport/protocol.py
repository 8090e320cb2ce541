"""What the interpreter asks of a transport.

A transport knows tensors and peers, not instructions. Peers are ranks of its own pipeline. It
promises no more than the checks assume: the transfers of a rank start in the order in which they
are posted, and a send ends only with its receive.

Both ends of a message know the size of each of its tensors. Some channels take *joined* messages
too, which their receiver need not know so well: their tensors lie one behind the other in a single
place, which may be longer than all of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from runtime.transport.rendezvous import RendezvousStore
from schemas import Direction

PeerChannel = tuple[Direction, int]
"""A channel as one of its two ranks sees it: whether it sends or receives there, and the peer."""


class TransportError(RuntimeError):
    """A message could not be moved."""


class ConnectionLostError(TransportError):
    """The other end went away, or this one gave the connection up: mostly a symptom."""

    def __init__(self, message: str, peer: int | None = None) -> None:
        """What was being done.

        Args:
            message: Names the channel and what the backend said.
            peer: The rank at the other end, by its number in the rendezvous, if there is one.
        """
        super().__init__(message)
        self.peer = peer


class Pending(Protocol):
    """A transfer that has been posted; it keeps its tensors alive until it is waited for."""


class Transport(Protocol):
    """One rank's connection to the others."""

    @property
    def rank(self) -> int:
        """The rank in the pipeline that this end belongs to."""

    @property
    def ranks(self) -> int:
        """R, the number of ranks of the pipeline."""

    @property
    def replica(self) -> int:
        """The data-parallel replica that this end belongs to."""

    @property
    def replicas(self) -> int:
        """The number of data-parallel replicas."""

    @property
    def global_rank(self) -> int:
        """The rank among all processes of the job, other pipelines' included."""

    @property
    def name(self) -> str | None:
        """Of this pipeline, among several that make up one replica; for recordings."""

    @property
    def device(self) -> torch.device:
        """Where tensors must be to be moved."""

    def joins(self, direction: Direction, peer: int) -> bool:
        """Whether the channel to or from a peer takes joined messages; both ends say the same."""

    def post_send(
        self, payload: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to send contiguous tensors as one message; they may not change before the wait."""

    def post_receive(
        self, places: Sequence[torch.Tensor], peer: int, *, joined: bool = False
    ) -> Pending:
        """Begin to receive one message into contiguous tensors of the sizes that were sent.

        One that is joined needs a single place, of at least the size of all that is sent.
        """

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Memory that messages are best received into, uint8 `[nbytes]`."""

    def release_memory(self, memory: torch.Tensor) -> None:
        """Nothing will be received into that memory again; who refers to it may keep it."""

    def start_group(self) -> None:
        """Hold back what is posted from here on, until the group ends."""

    def end_group(self) -> None:
        """Begin all transfers of the group as one entry of the queue; none waits for another."""

    def wait(self, pending: Pending) -> None:
        """Make what follows on this rank come after the transfer. To be called exactly once."""

    def to_host(self, message: torch.Tensor) -> torch.Tensor:
        """What was received, once it was waited for, in the host's memory, which may wait for it.

        It does so without blocking in the device, so that it can be told of a failure.
        """

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Overwrite `tensor` on every rank with that of rank `source`."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank, on every rank. For control, not for tensors."""

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this rank in every replica, by replica. For control, not for tensors."""

    def separate_channels(self) -> None:
        """Have no channel wait for another one, from the next `connect` on; on all ranks alike.

        Raises:
            TransportError: the channels share one queue, as they have been asked to.
        """

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """Warm up the channels to and from peers, once; all ranks take part at the same time."""

    @property
    def rendezvous(self) -> RendezvousStore | None:
        """Where the ranks tell each other of failures; `None`: there is only one."""

    @property
    def generation(self) -> int:
        """Which channels these are, or would be if they were open; grows with each failure."""

    @property
    def usable(self) -> bool:
        """Whether the channels of this generation are open."""

    def open(self, timeout: float) -> None:
        """Open the channels of this generation; all ranks at the same time.

        Args:
            timeout: Seconds that a wait may take in any case, a second line of defence behind the
                guard of `runtime.failure`.
        """

    def abandon(self) -> None:
        """End every wait of this rank, from another thread, and with it the generation."""

    def close(self) -> None:
        """Give back what the system gave for it: connections, descriptors and threads."""


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor as a flat `uint8` view.

    Every dtype travels this way, so that none has to be supported by the backend.

    Raises:
        TransportError: the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        shape, strides = list(tensor.shape), list(tensor.stride())
        raise TransportError(f"tensor {shape} has strides {strides}, needed a contiguous one")
    if tensor.dtype is torch.uint8 and tensor.dim() == 1:
        return tensor
    return tensor.detach().reshape(-1).view(torch.uint8)
