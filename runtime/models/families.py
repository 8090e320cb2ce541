"""What the supported model families call their parts, as one table.

Nothing here imports torch or transformers: a parent process looks a model up before it starts
workers, and only the workers pay for those imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.models.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Attribute names of a causal language model in transformers, and keys of its `config.json`."""

    base_model: str
    """Attribute of the causal language model that holds everything but the head."""
    token_embedding: str
    position_embedding: str | None
    """A table of learned absolute positions, added to the token embedding."""
    rotary_embedding: str | None
    """A module that gives every block the cosines and sines of the positions."""
    blocks: str
    final_norm: str
    head: str
    """Attribute of the causal language model: a linear layer from hidden state to logits."""
    hidden_size_key: str
    num_blocks_key: str
    max_positions_key: str


_LLAMA = Family(
    base_model="model",
    token_embedding="embed_tokens",
    position_embedding=None,
    rotary_embedding="rotary_emb",
    blocks="layers",
    final_norm="norm",
    head="lm_head",
    hidden_size_key="hidden_size",
    num_blocks_key="num_hidden_layers",
    max_positions_key="max_position_embeddings",
)
_GPT2 = Family(
    base_model="transformer",
    token_embedding="wte",
    position_embedding="wpe",
    rotary_embedding=None,
    blocks="h",
    final_norm="ln_f",
    head="lm_head",
    hidden_size_key="n_embd",
    num_blocks_key="n_layer",
    max_positions_key="n_positions",
)
FAMILIES: Mapping[str, Family] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""By `model_type`: an embedding, equal blocks of causal self-attention, a norm and a head."""

# What transformers assumes for Mistral where the key is absent; `null` means no window.
_MISTRAL_DEFAULT_WINDOW = 4096


@dataclass(frozen=True)
class SequenceLimits:
    """How many tokens a model can be given at once."""

    model: str
    """The model, for messages."""
    max_positions: int
    attention_window: int | None
    """How far sliding-window attention sees, the current token included; None: without limit."""

    def check(self, sequence_length: int) -> None:
        """Reject a sequence without positions for all its tokens, or longer than the attention.

        Raises:
            ModelError: naming the length and the limit that it exceeds.
        """
        if sequence_length > self.max_positions:
            raise ModelError(
                f"sequence length {sequence_length} is too long for {self.model}, which has "
                f"positions for at most {self.max_positions} tokens"
            )
        if self.attention_window is not None and sequence_length > self.attention_window:
            raise ModelError(
                f"sequence length {sequence_length} is too long for {self.model}, whose attention "
                f"slides over {self.attention_window} tokens: only sequences that fit in that "
                "window are supported"
            )


def family_of(model: str, model_type: object) -> Family:
    """Return the family with this `model_type`; `model` is what messages call the model.

    Raises:
        ModelError: naming the supported families.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"{model} is of the model family {model_type!r}; "
            f"the supported families are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def sequence_limits(model: str, config: Mapping[str, Any]) -> SequenceLimits:
    """Read the limits from a configuration: a `config.json`, or `PreTrainedConfig.to_dict()`."""
    family = family_of(model, config.get("model_type"))
    return SequenceLimits(model, config[family.max_positions_key], _attention_window(config))


def _attention_window(config: Mapping[str, Any]) -> int | None:
    window: int | None = None
    if config["model_type"] == "mistral":
        window = config.get("sliding_window", _MISTRAL_DEFAULT_WINDOW)
    elif config.get("use_sliding_window"):
        # Qwen's switch. Some of its blocks may see everything even so: the limit is cautious.
        window = config.get("sliding_window")
    return window
