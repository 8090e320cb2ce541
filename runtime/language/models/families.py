"""What the supported model families call their parts, as one table.

Nothing here imports torch or transformers: a parent process looks a model up before it starts
workers, and only the workers pay for those imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.language.models.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Names of a model's parts in transformers, and keys of its `config.json`.

    A part is named by its path from the model that transformers loads, which is also how the names
    of its weights in a checkpoint begin. Paths are below `base`, where it is not empty, but for
    the head's.
    """

    base: str
    """The submodule that holds everything but the head; empty: the model itself, without head."""
    embeddings: Mapping[str, str]
    """Parts of the first layer, by their names there."""
    rotary: str | None
    """A module without weights that gives every block the cosines and sines of the positions."""
    blocks: str
    final: Mapping[str, str]
    """Parts of the last layer, by their names there, and below `base`."""
    head: str | None
    """A linear layer from hidden state to logits: the part `projection` of the last layer."""
    hidden_size_key: str = "hidden_size"
    num_blocks_key: str = "num_hidden_layers"
    max_positions_key: str = "max_position_embeddings"
    renamed: Mapping[str, str] = field(default_factory=dict)
    """What checkpoints call a part, if not by its path; to nothing, if it is but a prefix."""
    unused: tuple[str, ...] = ()
    """Parts of checkpoints that evaluation has no use for."""

    def parts(self, layer: int, num_blocks: int) -> dict[str, str]:
        """The parts of a pipeline layer by their names in it, as paths from the whole model.

        Layer 0 is the embedding, layers 1 to `num_blocks` are the blocks, and then comes the head.
        """
        if layer == 0:
            return {name: self._path(part) for name, part in self.embeddings.items()}
        if layer <= num_blocks:
            return {"block": self._path(f"{self.blocks}.{layer - 1}")}
        final = {name: self._path(part) for name, part in self.final.items()}
        return final if self.head is None else final | {"projection": self.head}

    def rotary_path(self) -> str | None:
        """The path of the rotary embedding, if there is one."""
        return None if self.rotary is None else self._path(self.rotary)

    def _path(self, part: str) -> str:
        return f"{self.base}.{part}" if self.base else part


_LLAMA = Family(
    base="model",
    embeddings={"tokens": "embed_tokens"},
    rotary="rotary_emb",
    blocks="layers",
    final={"norm": "norm"},
    head="lm_head",
)
FAMILIES: Mapping[str, Family] = {
    "gemma": _LLAMA,
    "gpt2": Family(
        base="transformer",
        embeddings={"tokens": "wte", "positions": "wpe"},
        rotary=None,
        blocks="h",
        final={"norm": "ln_f"},
        head="lm_head",
        hidden_size_key="n_embd",
        num_blocks_key="n_layer",
        max_positions_key="n_positions",
    ),
    "gpt_neox": Family(
        base="gpt_neox",
        embeddings={"tokens": "embed_in"},
        rotary="rotary_emb",
        blocks="layers",
        final={"norm": "final_layer_norm"},
        head="lm_head",
        renamed={"embed_out": "lm_head"},
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi": replace(_LLAMA, final={"norm": "final_layernorm"}),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""By `model_type`: an embedding, equal blocks of causal self-attention, a norm and a head.

SmolLM is a `llama`, Pythia a `gpt_neox`."""

ENCODERS: Mapping[str, Family] = {
    "bert": Family(
        base="",
        embeddings={"embeddings": "embeddings"},
        rotary=None,
        blocks="encoder.layer",
        final={},
        head=None,
        renamed={"bert": ""},
        unused=("pooler", "cls"),
    ),
}
"""By `model_type`: embeddings and equal blocks of attention in both directions, with a mask."""

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
            f"the supported families are {', '.join(sorted(FAMILIES))}; the layers of others can "
            "be given to runtime.Evaluator as a list of modules or runtime.LayerSpec"
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
    elif config["model_type"] == "phi3":
        window = config.get("sliding_window")
    elif config.get("use_sliding_window"):
        # Qwen's switch. Some of its blocks may see everything even so: the limit is cautious.
        window = config.get("sliding_window")
    return window
