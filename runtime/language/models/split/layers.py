"""The layers of a pipeline that a causal language model makes: embedding, blocks, head.

::

    ids ─> EmbeddingLayer ─> BlockLayer ─> ... ─> BlockLayer ─> HeadLayer ─> logits

Every layer takes one activation and returns one, so any cut between layers is a stage boundary. An
activation is the hidden state [micro_batch, sequence, hidden], or, where a micro-batch comes with a
mask or with positions, a dict of the hidden state and these, which the later stages need too. The
masks of attention and rotary embeddings are not sent: the model's frame makes them on each stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from runtime.language.models.errors import ModelError
from runtime.language.models.files.shape import SequenceLimits
from runtime.language.models.split.frame import (
    Arguments,
    Wrapping,
    arguments_of_layers,
    as_tensor,
    first_hidden,
    run,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Conditions = dict[str, torch.Tensor]
"""`attention_mask` and `position_ids` of a micro-batch, if it has them: [micro_batch, sequence].

A mask may also say which token sees which: bool [micro_batch, 1, sequence, sequence]."""

Activation = torch.Tensor | dict[str, torch.Tensor]

_HIDDEN = "hidden"


def pack(hidden: torch.Tensor, conditions: Conditions) -> Activation:
    """The activation of a hidden state and its conditions."""
    return {_HIDDEN: hidden, **conditions} if conditions else hidden


def unpack(activation: Activation) -> tuple[torch.Tensor, Conditions]:
    """The hidden state and the conditions of an activation."""
    if isinstance(activation, torch.Tensor):
        return activation, {}
    conditions = dict(activation)
    return conditions.pop(_HIDDEN), conditions


class EmbeddingLayer(nn.Module):
    """All that the model does before its first decoder layer.

    There is no dropout, which evaluation would skip.
    """

    def __init__(
        self, lm: PreTrainedModel, limits: SequenceLimits, accepted: frozenset[str]
    ) -> None:
        """Embed with a frame.

        Args:
            lm: It has the weights that come before the decoder layers.
            limits: Of the lengths of sequences.
            accepted: The conditions that the model takes.
        """
        super().__init__()
        self.lm, self.limits, self.accepted = lm, limits, accepted

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> Activation:
        """Map ids to the first hidden state.

        Args:
            input_ids: int64 [micro_batch, sequence].
            attention_mask: As collators of transformers make it, 0 where there is padding (on
                either side): [micro_batch, sequence]. Or of `Conditions`' other kind.
            position_ids: int64 [micro_batch, sequence]; default: 0, 1, 2, ... in each row, as in
                the model's own forward, also where there is padding on the left.

        Raises:
            ModelError: the sequence is too long for the model, or it takes no such input.
        """
        self.limits.check(input_ids.shape[1])
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        conditions = {name: value for name, value in given.items() if value is not None}
        for name in conditions:
            if name not in self.accepted:
                raise ModelError(f"{self.limits.model} takes no {name}")
        return pack(first_hidden(self.lm, input_ids=input_ids, **conditions), conditions)


class Surroundings(nn.Module):
    """What the decoder layers of a stage are given beside the hidden state: made once for all."""

    def __init__(self, lm: PreTrainedModel, layers: int, returned: Wrapping) -> None:
        """Ask a frame.

        Args:
            lm: It has no weights.
            layers: The number of decoder layers of the model.
            returned: What these return.
        """
        super().__init__()
        self.lm, self.layers, self.returned = lm, layers, returned
        rope: Any = getattr(lm.config, "rope_parameters", None) or {}
        self.remembers = "dynamic" in str(rope)
        """Whether rotary embeddings depend on the lengths of former sequences."""
        self._last: tuple[Any, Conditions, list[Arguments]] | None = None

    def calls(
        self, hidden: torch.Tensor, conditions: Conditions
    ) -> tuple[list[Arguments], Conditions]:
        """What each decoder layer of the model is called with.

        Returns:
            The arguments, and the conditions to pass on: the next layer that comes with them is
            given the same.
        """
        key = (hidden.shape, hidden.dtype, hidden.device, torch.is_inference_mode_enabled())
        if self._last is not None and not self.remembers:
            last, passed_on, calls = self._last
            # Those passed on are copies that nobody else writes to: not so a loader's.
            if (
                last == key
                and passed_on.keys() == conditions.keys()
                and all(passed_on[name] is conditions[name] for name in conditions)
            ):
                return calls, passed_on
        copies = {name: tensor.clone() for name, tensor in conditions.items()}
        inputs = {"inputs_embeds": hidden, **copies}
        mask = copies.get("attention_mask")
        if mask is not None and mask.dim() == 4 and mask.dtype == torch.bool:
            # Attention that is written out would add it as numbers, and see everything.
            numbers = torch.zeros_like(mask, dtype=hidden.dtype)
            inputs["attention_mask"] = numbers.masked_fill_(~mask, -torch.inf)
        calls = arguments_of_layers(self.lm, self.layers, self.returned, **inputs)
        self._last = key, copies, calls
        return calls, copies

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was made for a micro-batch."""
        return self.__dict__ | {"_last": None}


class BlockLayer(nn.Module):
    """One decoder layer, called as the model's own forward calls it."""

    def __init__(self, block: nn.Module, index: int, surroundings: Surroundings) -> None:
        """Wrap decoder layer number `index` of the model."""
        super().__init__()
        self.block, self.index, self.surroundings = block, index, surroundings

    def forward(self, activation: Activation) -> Activation:
        """Map a hidden state [micro_batch, sequence, hidden] to the next, of the same shape.

        Raises:
            ModelError: the decoder layer returned something else than the model takes.
        """
        hidden, conditions = unpack(activation)
        calls, conditions = self.surroundings.calls(hidden, conditions)
        args, kwargs = calls[self.index]
        output = self.block(hidden, *args, **kwargs)
        if isinstance(output, tuple) and self.surroundings.returned is not as_tensor:
            output = output[0]
        if not isinstance(output, torch.Tensor):
            raise ModelError(
                f"{type(self.block).__name__} returned a {type(output).__name__}, and its model "
                "goes on with a tensor"
            )
        return pack(output, conditions)


class HeadLayer(nn.Module):
    """All that the model does after its last decoder layer: norm, projection, scaling, softcap."""

    def __init__(self, lm: PreTrainedModel, returned: Wrapping) -> None:
        """Score with a frame that has the weights that come after the decoder layers."""
        super().__init__()
        self.lm, self.returned = lm, returned

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        size: int = self.lm.config.get_text_config(decoder=True).vocab_size
        return size

    def forward(self, activation: Activation) -> torch.Tensor:
        """Map a hidden state to logits [micro_batch, sequence, vocabulary]."""
        return self.logits(unpack(activation)[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score hidden states [rows, columns, hidden], each alone: [rows, columns, vocabulary]."""
        # Logits come of the last hidden state alone, so the mask of padding is not needed.
        output = run(self.lm, lambda *_: self.returned(hidden), inputs_embeds=hidden)
        logits: torch.Tensor = output.logits
        return logits
