"""Signatures: what both ends of a boundary know of activations before these travel.

The first activation of a new *kind* brings its signature along, in a *header* (see
`runtime.execution.headers`). The kind of a micro-batch is what its inputs look like on the first
stage, which all ranks know beforehand (see `runtime.data.stream`). Further activations of the kind
need no header, if their signature follows from the kind alone. It does not

- where a layer computes shapes from values (it drops padding, say): the operators of torch that do
  so are noticed, see `runtime.tensors.data_dependent_shapes`;
- where an activation holds plain values beside tensors, or memory that is not torch's;
- where that is so on the stage before, or the caller says so (`dynamic_shapes`).

Then each activation brings its header. Nobody runs a layer in order to learn a shape.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from runtime.tensors.activation import Signature, special
from runtime.tensors.data_dependent_shapes import noticing
from runtime.tensors.structure import StructureError, holds_values, take_apart

KINDS = 1024
"""Kinds that one end of a boundary remembers; the other end forgets the same ones."""

WATCHED = 8
"""Kinds that are watched when they come for the first time."""


class Signatures:
    """What one rank knows of the signatures of its activations, in one run."""

    def __init__(
        self,
        kind: Callable[[int], str],
        ours: Callable[[int], int],
        *,
        copied_at: Collection[int] = (),
        dynamic_shapes: bool = False,
    ) -> None:
        """Begin without any signature known.

        Args:
            kind: Of each micro-batch what its inputs look like.
            ours: Whether memory at an address is the rank's own, see `MemoryPool`.
            copied_at: The boundaries between two stages of this rank. Boundary `b` is between the
                stages `b` and `b + 1`.
            dynamic_shapes: Whether every activation brings its header.
        """
        self._kind, self._ours = kind, ours
        self._copied_at, self._dynamic = frozenset(copied_at), dynamic_shapes
        self._settled: defaultdict[int, OrderedDict[str, Signature | None]] = defaultdict(
            OrderedDict
        )
        """By boundary and kind; `None`: it follows from the kind, and need not be known here."""
        self._met: OrderedDict[tuple[int, str], None] = OrderedDict()
        """Kinds that have been forwarded, by stage."""
        self._watched = 0
        self._by_kind: set[tuple[int, int]] = set()
        """Stages and micro-batches, not sent yet, whose outputs took no shape from values."""

    def settled(self, boundary: int, micro_batch: int) -> Signature | None:
        """The signature that all activations of the micro-batch's kind have, if it is known."""
        return self._settled[boundary].get(self._kind(micro_batch))

    def settle(self, boundary: int, micro_batch: int, signature: Signature | None) -> None:
        """From here on, both ends know the signature of this kind of activations."""
        known = self._settled[boundary]
        known[self._kind(micro_batch)] = signature
        if len(known) > KINDS:
            known.popitem(last=False)

    def settles(self, stage: int, micro_batch: int, signature: Signature, value: Any) -> bool:
        """Whether the signature of an output that is to be sent follows from its kind."""
        key = (stage, micro_batch)
        by_kind = key in self._by_kind
        self._by_kind.discard(key)
        return (
            by_kind
            and not self._dynamic
            and not holds_values(value)
            and not any(block.lead for block in signature.blocks)  # may be another place
        )

    def forward(self, stage: int, micro_batch: int, layers: nn.Module, inputs: Any) -> Any:
        """What the layers return; whether shapes come from values is noticed where it matters.

        Each operator takes longer while it is watched, and kinds that come once need a header in
        any case. So the first few kinds are watched at once, and others when they come again.
        """
        kind = self._kind(micro_batch)
        if self._dynamic or kind in self._settled[stage]:
            return layers(inputs)
        met = (stage, kind) in self._met
        self._met[stage, kind] = None
        if len(self._met) > KINDS:
            self._met.popitem(last=False)
        follows = stage == 0 or kind in self._settled[stage - 1]
        if not (met or self._watched < WATCHED) or not follows:
            return layers(inputs)
        self._watched += 1
        with noticing() as noticed:
            output = layers(inputs)
        if not noticed.by_value and not self._is_foreign(output):
            if stage in self._copied_at:
                self.settle(stage, micro_batch, None)
            else:
                self._by_kind.add((stage, micro_batch))
        return output

    def _is_foreign(self, output: Any) -> bool:
        """Whether an output is in memory that is not torch's, at whatever address."""
        try:
            tensors = take_apart(output)[1]
        except StructureError:
            return True
        storages = [t.untyped_storage() for t in tensors if not special(t)]
        return any(not (s.resizable() or self._ours(s.data_ptr())) for s in storages)
