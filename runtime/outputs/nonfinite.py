"""The finite check: in which stage a loss that is NaN or infinite began.

Every stage notes for each micro-batch, on its device, whether its output holds a NaN or an
infinity; after the run the notes are read once and compared. No micro-batch makes a host wait.

An infinity is no fault in itself: attention masks are full of them. So infinities count as a
beginning only where micro-batches with a finite loss have none.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.failure.errors import AgreedError
from runtime.tensors.nested import flatten

Notes = list[list[bool]]
"""Of one stage, `[micro_batches][len(Found)]`."""


class NonFiniteError(AgreedError, ArithmeticError):
    """A loss is NaN or infinite."""


class Found(IntEnum):
    """What a stage can find in a micro-batch, and notes."""

    INPUT_NAN = 0
    INPUT_INFINITY = 1
    OUTPUT_NAN = 2
    OUTPUT_INFINITY = 3
    LOSS = 4
    PENDING_HEAD = 5
    """The output holds a layer, which the loss function applies."""


class FiniteCheck:
    """One stage's notes on one run."""

    def __init__(self, micro_batches: int, device: torch.device) -> None:
        """Begin with nothing noted of up to `micro_batches`."""
        self._notes = torch.zeros(micro_batches, len(Found), dtype=torch.bool, device=device)

    def look_at_inputs(self, micro_batch: int, inputs: Any) -> None:
        """Take notes on the inputs of the first stage."""
        self._look(micro_batch, inputs, Found.INPUT_NAN, Found.INPUT_INFINITY)

    def look_at_output(self, micro_batch: int, output: Any) -> None:
        """Take notes on what the layers returned."""
        self._look(micro_batch, output, Found.OUTPUT_NAN, Found.OUTPUT_INFINITY)
        if any(isinstance(leaf, nn.Module) for leaf in flatten(output)[0]):
            self._notes[micro_batch, Found.PENDING_HEAD] = True

    def look_at_loss(self, micro_batch: int, loss: Any, weight: float | torch.Tensor) -> None:
        """Take notes on a loss, unless its weight is zero and it does not count."""
        if not isinstance(weight, torch.Tensor) and weight == 0:
            return
        for part in _floating(loss):
            self._notes[micro_batch, Found.LOSS] |= ~part.isfinite().all()
        numbers = (x for x in pytree.tree_leaves(loss) if isinstance(x, Real))
        if not all(map(math.isfinite, numbers)):  # numpy's are among them
            self._notes[micro_batch, Found.LOSS] = True
        if isinstance(weight, torch.Tensor):
            self._notes[micro_batch, Found.LOSS] &= (weight != 0).any()

    def notes(self, micro_batches: int) -> Notes:
        """What was noted of the first micro-batches; waits for the device."""
        notes: Notes = self._notes[:micro_batches].tolist()
        return notes

    def _look(self, micro_batch: int, value: Any, nan: Found, infinity: Found) -> None:
        for part in _floating(value):
            self._notes[micro_batch, nan] |= part.isnan().any()
            self._notes[micro_batch, infinity] |= part.isinf().any()


def require_finite(by_stage: Sequence[Notes], boundaries: Sequence[int], before: int) -> None:
    """Look at what all stages noted.

    Args:
        by_stage: Notes by stage.
        boundaries: Stage `s` holds the layers from `boundaries[s]` up to `boundaries[s + 1]`.
        before: Micro-batches of the data set that came before those of this run.

    Raises:
        NonFiniteError: a loss is not finite; names the first micro-batch, and where it began.
    """
    losses = [notes[Found.LOSS] for notes in by_stage[-1]]
    bad = [micro_batch for micro_batch, is_bad in enumerate(losses) if is_bad]
    if not bad:
        return
    healthy = [micro_batch for micro_batch, is_bad in enumerate(losses) if not is_bad]
    others = f"; so are those of {len(bad) - 1} others" if len(bad) > 1 else ""
    raise NonFiniteError(
        f"the loss of micro-batch {before + bad[0]} is not finite: "
        f"{_beginning(by_stage, boundaries, bad[0], healthy)}{others}"
    )


def _beginning(
    by_stage: Sequence[Notes], boundaries: Sequence[int], micro_batch: int, healthy: list[int]
) -> str:
    looked_at = [("the inputs of stage 0", 0, Found.INPUT_NAN, Found.INPUT_INFINITY)]
    for stage in range(len(by_stage)):
        layers = f"layers {boundaries[stage]} to {boundaries[stage + 1] - 1}"
        place = f"the output of stage {stage} ({layers})"
        looked_at.append((place, stage, Found.OUTPUT_NAN, Found.OUTPUT_INFINITY))
    for place, stage, nan, infinity in looked_at:
        notes = by_stage[stage]
        if notes[micro_batch][nan]:
            return f"NaN first appears in {place}"
        if notes[micro_batch][infinity] and not any(notes[m][infinity] for m in healthy):
            return f"an infinity first appears in {place}"
    last = len(by_stage) - 1
    if by_stage[last][micro_batch][Found.PENDING_HEAD]:
        return (
            f"all stages' outputs are finite, so the head (layer {boundaries[-1] - 1}) or the loss "
            f"function of stage {last} makes it so"
        )
    return "all stages' outputs are finite, the loss function makes it so"


def _floating(value: Any) -> list[torch.Tensor]:
    tensors = [leaf for leaf in flatten(value)[0] if isinstance(leaf, torch.Tensor)]
    tensors = [t if t.layout is torch.strided else t.to_dense() for t in tensors if not t.is_nested]
    # Eight-bit floats know few operations.
    return [t.float() if t.element_size() == 1 else t for t in tensors if t.is_floating_point()] + [
        torch.view_as_real(t.resolve_conj()) for t in tensors if t.is_complex()
    ]
