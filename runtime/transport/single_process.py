"""The transport of a pipeline in a single process, which has no peers."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch

from runtime.transport.protocol import Pending, TransportError
from runtime.transport.rendezvous import RendezvousStore
from schemas import Direction


class SingleProcessTransport:
    """The only rank of the only replica; see `Transport` for what the methods are asked for."""

    rank = replica = global_rank = generation = 0
    ranks = replicas = 1
    name: str | None = None
    rendezvous: RendezvousStore | None = None
    usable = True

    def __init__(self, device: torch.device | None = None) -> None:
        """A transport whose activations live on `device`; default: the CPU."""
        self.device = device or torch.device("cpu")

    def joins(self, direction: Direction, peer: int) -> bool:  # noqa: ARG002
        """There is no channel."""
        return False

    def separate_channels(self) -> None:
        """There is none."""

    def post_send(
        self,
        payload: Sequence[torch.Tensor],
        peer: int,
        *,
        joined: bool = False,  # noqa: ARG002
    ) -> Pending:
        """There is no other rank.

        Raises:
            TransportError: always.
        """
        self._refuse(f"send {len(payload)} tensors to rank {peer}")

    def post_receive(
        self,
        places: Sequence[torch.Tensor],
        peer: int,
        *,
        joined: bool = False,  # noqa: ARG002
    ) -> Pending:
        """There is no other rank.

        Raises:
            TransportError: always.
        """
        self._refuse(f"receive {len(places)} tensors from rank {peer}")

    def receive_memory(self, nbytes: int) -> torch.Tensor:
        """Any memory will do."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def release_memory(self, memory: torch.Tensor) -> None:
        """Nothing was given for it."""

    def start_group(self) -> None:
        """Nothing can be posted in it."""

    def end_group(self) -> None:
        """Nothing was posted in it."""

    def wait(self, pending: Pending) -> None:
        """There is no transfer to wait for.

        Raises:
            TransportError: always.
        """
        self._refuse(f"wait for {pending!r}")

    def to_host(self, message: torch.Tensor) -> torch.Tensor:
        """Nothing was received.

        Raises:
            TransportError: always.
        """
        self._refuse(f"read a message of {message.nbytes} bytes")

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """The only rank has it already."""

    def gather_objects(self, value: Any) -> list[Any]:
        """That of the only rank."""
        return [value]

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """That of the only replica."""
        return [value]

    def connect(self, receives_from: Iterable[int], sends_to: Iterable[int]) -> None:
        """There is nobody to connect to.

        Raises:
            TransportError: a peer is named.
        """
        if peers := sorted({*receives_from, *sends_to}):
            self._refuse(f"connect to ranks {peers}")

    def open(self, timeout: float) -> None:
        """There are no channels."""

    def abandon(self) -> None:
        """There is no wait to be ended."""

    def close(self) -> None:
        """Nothing was given."""

    def _refuse(self, what: str) -> NoReturn:
        raise TransportError(f"a pipeline of a single process cannot {what}")
