"""Split a causal language model into the layers of a pipeline.

::

    ids ─> EmbeddingLayer ─> BlockLayer ─> ... ─> BlockLayer ─> HeadLayer ─> logits

Every layer takes one tensor and returns one, so any cut between two layers is a stage boundary. A
layer refers to its own parameters only: a process that keeps some layers and drops the rest and the
model gets the memory of the rest back. Whatever blocks need beside the hidden state follows from
its shape and is computed again in every block, instead of being sent from stage to stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from runtime.language.models.errors import ModelError
from runtime.language.models.families import SequenceLimits, family_of, sequence_limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "sdpa"
"""The attention whose blocks are causal when they are given no mask (`eager` sees the future)."""


class EmbeddingLayer(nn.Module):
    """Look up the embeddings of the tokens, and of their positions where the model learns those.

    There is no dropout, which evaluation would skip.
    """

    def __init__(
        self, tokens: nn.Module, positions: nn.Module | None = None, *, limits: SequenceLimits
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.limits = limits

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map int64 ids [micro_batch, sequence] to a hidden state [micro_batch, sequence, hidden].

        Raises:
            ModelError: the sequence is too long for the model.
        """
        self.limits.check(input_ids.shape[1])
        hidden: torch.Tensor = self.tokens(input_ids)
        if self.positions is not None:
            hidden = hidden + self.positions(_position_ids(input_ids))
        return hidden


class BlockLayer(nn.Module):
    """One transformer block: causal self-attention and a feed-forward network."""

    def __init__(self, block: nn.Module, rotary: nn.Module | None, attention_width: int) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary
        self.attention_width = attention_width
        """Heads x width of a head."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map a hidden state [micro_batch, sequence, hidden] to the next, of the same shape."""
        rotations = {}
        if self.rotary is not None:
            positions = _position_ids(hidden)
            rotations["position_embeddings"] = self.rotary(hidden, position_ids=positions)
        # Without a mask, the attention asks PyTorch for the causal one: see `ATTENTION`.
        output: torch.Tensor = self.block(hidden, attention_mask=None, **rotations)
        return output


class HeadLayer(nn.Module):
    """Normalise the last hidden state and score every token of the vocabulary."""

    def __init__(self, norm: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.projection = projection

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map a hidden state to logits [micro_batch, sequence, vocabulary]."""
        logits: torch.Tensor = self.projection(self.norm(hidden))
        return logits


def split_causal_lm(model: PreTrainedModel) -> list[nn.Module]:
    """Split a model into its embedding, its blocks and its head, in the order of their use.

    The layers hold the model's own parameters, in evaluation mode. One after the other they give
    the logits of `model(input_ids=ids, use_cache=False)`, bit for bit on the same number of
    threads. Where the head is tied to the embedding, both hold the same weight.

    Raises:
        ModelError: a family that is not supported, or an attention that needs a mask.
    """
    config = model.config
    name = config.name_or_path or type(model).__name__
    family = family_of(name, config.model_type)
    attention = config._attn_implementation
    if attention != ATTENTION:
        raise ModelError(
            f"{name} uses the attention {attention!r}, and a pipeline needs {ATTENTION!r}: "
            f"load the model with attn_implementation={ATTENTION!r}"
        )
    head_dim = getattr(config, "head_dim", None)
    heads: int = config.num_attention_heads
    attention_width = config.hidden_size if head_dim is None else heads * head_dim

    num_blocks: int = config.num_hidden_layers

    def parts(layer: int) -> dict[str, nn.Module]:
        paths = family.parts(layer, num_blocks)
        return {part: model.get_submodule(path) for part, path in paths.items()}

    path = family.rotary_path()
    rotary = None if path is None else model.get_submodule(path)
    layers: list[nn.Module] = [
        EmbeddingLayer(**parts(0), limits=sequence_limits(name, config.to_dict())),
        *(
            BlockLayer(**parts(layer), rotary=rotary, attention_width=attention_width)
            for layer in range(1, num_blocks + 1)
        ),
        HeadLayer(**parts(num_blocks + 1)),
    ]
    for layer in layers:
        layer.eval()
    return layers


def _position_ids(tensor: torch.Tensor) -> torch.Tensor:
    """Positions [1, sequence] of a tensor [micro_batch, sequence, ...]."""
    return torch.arange(tensor.shape[1], device=tensor.device).unsqueeze(0)
