"""One end of a transfer, and what is known of it before it begins."""

from dataclasses import dataclass, field
from typing import Any

import torch

from runtime.tensors.activation import Signature
from runtime.transport.protocol import PeerChannel, Pending
from schemas import Direction


@dataclass
class Transfer:
    """One end of a transfer, from the decision to begin it to its wait."""

    direction: Direction
    stage: int
    micro_batch: int
    peer: int
    """The stage at the other end."""
    value: Any = None
    """The activation: given to be sent, or there after the wait."""
    arriving: tuple[Signature, list[torch.Tensor]] | None = None
    """What is received, and where."""
    pending: list[Pending] = field(default_factory=list)
    """What is to be waited for."""

    @property
    def key(self) -> tuple[Direction, int, int]:
        """What tells it from others that are under way."""
        return self.direction, self.stage, self.micro_batch

    @property
    def boundary(self) -> int:
        """The stage that sends: boundary `b` is between the stages `b` and `b + 1`."""
        return self.stage if self.direction is Direction.SEND else self.peer


@dataclass
class Prepared:
    """A transfer, and the messages that it is going to take."""

    transfer: Transfer
    channel: PeerChannel
    signature: Signature | None
    """What is sent, or is known to come."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    """Those of the activation that is sent."""
    first: list[torch.Tensor] = field(default_factory=list)
    """The message with the header, or the place for it; empty: there is none."""
    rest: list[torch.Tensor] = field(default_factory=list)
    """Of a long header."""
    room: int = -1
    """For the activation beside the header; see `FirstMessages.room`."""
    settles: bool = False
    """Whether the header says that this is the signature of all activations of this kind."""
    window_follows: bool = False
    """Whether a window comes right behind."""

    @property
    def beside_header(self) -> bool:
        """Whether the activation is in the message with the header."""
        return self.signature is not None and self.signature.extent <= self.room
