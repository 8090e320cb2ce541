"""The shape of a causal language model, as its `config.json` states it.

Nothing here imports torch or transformers: a parent process looks a model up before it starts
workers, and only the workers pay for those imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.language.models.errors import ModelError

_BLOCKS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What families call the same thing; the first is the name in transformers' own attributes."""


@dataclass(frozen=True)
class SequenceLimits:
    """How many tokens a model can be given at once."""

    model: str
    """The model, for messages."""
    max_positions: int | None
    """None: as many as there is memory for."""

    def check(self, sequence_length: int) -> None:
        """Reject a sequence without positions for all its tokens.

        Raises:
            ModelError: naming the length and the limit that it exceeds.
        """
        if self.max_positions is not None and sequence_length > self.max_positions:
            raise ModelError(
                f"sequence length {sequence_length} is too long for {self.model}, which has "
                f"positions for at most {self.max_positions} tokens"
            )


@dataclass(frozen=True)
class ModelFiles:
    """Where a causal language model lies, and its shape."""

    name: str
    """What the user called it."""
    directory: Path
    """A Hugging Face model directory: `config.json`, weights, and usually a tokenizer."""
    model_type: str
    """What transformers calls the family."""
    num_blocks: int
    """The pipeline has two layers more: the embedding and the head."""
    hidden_size: int
    vocabulary_size: int
    limits: SequenceLimits


def model_files(name: str, directory: Path, config: Mapping[str, Any]) -> ModelFiles:
    """Read the shape from a `config.json`.

    Raises:
        ModelError: naming a key without which there is none.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(
            f"{directory} is of the model family {model_type!r}: needed the name of "
            "a family of transformers, as model_type in config.json"
        )
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    return ModelFiles(
        name=name,
        directory=directory,
        model_type=model_type,
        num_blocks=_count(directory, settings, _BLOCKS),
        hidden_size=_count(directory, settings, _HIDDEN),
        vocabulary_size=_count(directory, settings, ("vocab_size",)),
        limits=sequence_limits(name, settings),
    )


def sequence_limits(name: str, config: Mapping[str, Any]) -> SequenceLimits:
    """Read the limits from a configuration: a `config.json`, or `PreTrainedConfig.to_dict()`.

    Positions end where the configuration says so. Rotary embeddings that are scaled reach beyond
    what a model was first trained on, and attention with a linear bias (ALiBi) and recurrent models
    know no end.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling")
    rope = found if isinstance(found, Mapping) else {}  # which transformers says more about
    scaled = rope.get("rope_type", rope.get("type", "default")) not in (None, "default")
    stated = next((config[key] for key in _POSITIONS if config.get(key) is not None), None)
    usable = isinstance(stated, int) and stated > 0 and not scaled and not config.get("alibi")
    return SequenceLimits(name, stated if usable else None)


def _count(directory: Path, config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    key = next((key for key in keys if key in config), keys[0])
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ModelError(
            f"the configuration of {directory} sets {key} to {value!r}, "
            "and an integer of at least 1 is needed"
        )
    return value
