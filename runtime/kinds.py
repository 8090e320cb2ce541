"""Kinds of micro-batches: what of an activation follows from what its micro-batch looks like.

The kind of a micro-batch is what its inputs look like on the first stage, which all stages know
beforehand (see `runtime.stream`). A signature is *settled* where it follows from the kind alone:
later activations of the kind need no header then. It does not

- where a layer computes shapes from values (it drops padding, say): the operators of torch that do
  so are noticed, see `runtime.value_shapes`;
- where an activation holds plain values beside tensors, or memory that is not torch's;
- where that is so on the stage before, or the caller says so (`dynamic_shapes`).

Nobody runs a layer in order to learn a shape.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from runtime.activation import Signature, special
from runtime.ownership import MemoryPool
from runtime.structure import StructureError, holds_values, take_apart
from runtime.transport.protocol import Channel
from runtime.value_shapes import noticing
from schemas import Direction

KINDS = 1024
"""Kinds that one end of a channel remembers; the other end forgets the same ones."""

WATCHED = 8
"""Kinds that are watched when they come for the first time."""


class Kinds:
    """What one stage has found out about kinds in one run."""

    def __init__(self, memory: MemoryPool, *, dynamic_shapes: bool) -> None:
        """Begin without any signature known.

        Args:
            memory: Where received activations live.
            dynamic_shapes: Whether nothing is to be settled.
        """
        self._memory, self._dynamic = memory, dynamic_shapes
        self._known: dict[Channel, OrderedDict[str, Signature]] = {}
        """What is settled, by channel and kind."""
        self._met: OrderedDict[str, None] = OrderedDict()
        """Kinds that have been forwarded."""
        self._watched = 0
        self._by_kind: set[int] = set()
        """Micro-batches, not sent yet, whose outputs did not take their shapes from values."""

    def settled(self, channel: Channel, kind: str) -> Signature | None:
        """The signature of all activations of a kind on a channel, if both ends know it."""
        return self._known.setdefault(channel, OrderedDict()).get(kind)

    def settle(self, channel: Channel, kind: str, signature: Signature) -> None:
        """Both ends know it from here on."""
        known = self._known[channel]
        known[kind] = signature
        if len(known) > KINDS:
            known.popitem(last=False)

    def settles(self, micro_batch: int, value: Any, signature: Signature) -> bool:
        """Whether the signature of an activation that is sent follows from its kind.

        Args:
            micro_batch: Its number; it is asked for once.
            value: The activation.
            signature: Its signature.
        """
        by_kind = micro_batch in self._by_kind
        self._by_kind.discard(micro_batch)
        return not (
            self._dynamic
            or not by_kind
            or holds_values(value)
            or any(block.lead for block in signature.blocks)  # a place that may be another one
        )

    def forward(self, micro_batch: int, kind: str, module: nn.Module, inputs: Any) -> Any:
        """What the layers return; whether shapes come from values is noticed where it matters.

        Each operator takes longer while it is watched, and kinds that come once need a header in
        any case. So the first few kinds are watched at once, and others when they come again.
        """
        if self._dynamic or self._everywhere(Direction.SEND, kind):
            return module(inputs)
        met = kind in self._met
        self._met[kind] = None
        if len(self._met) > KINDS:
            self._met.popitem(last=False)
        if not (met or self._watched < WATCHED) or not self._everywhere(Direction.RECV, kind):
            return module(inputs)
        self._watched += 1
        with noticing() as noticed:
            output = module(inputs)
        if not noticed.by_value and not self._is_foreign(output):
            self._by_kind.add(micro_batch)
        return output

    def _everywhere(self, direction: Direction, kind: str) -> bool:
        """Whether activations of a kind need no headers, on any channel of a direction."""
        ways = [known for way, known in self._known.items() if way[0] is direction]
        if direction is Direction.SEND and not ways:
            return False
        return all(kind in known for known in ways)

    def _is_foreign(self, output: Any) -> bool:
        """Whether an output is in memory that is not torch's, at whatever address."""
        try:
            tensors: list[torch.Tensor] = take_apart(output)[1]
        except StructureError:
            return True
        storages = [t.untyped_storage() for t in tensors if not special(t)]
        ours = self._memory.ours
        return any(not (s.resizable() or ours(s.data_ptr())) for s in storages)
