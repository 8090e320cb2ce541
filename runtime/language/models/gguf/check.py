"""Refuse a GGUF file whose model would change when transformers converts it.

transformers leaves out keys and tensors that it has no translation for, without a word, and takes
its own defaults for keys that are absent. Both may change the arithmetic: scaled rotary
embeddings, experts, sliding windows, the number of heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf

from runtime.language.models.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Values of `general.architecture` that can be converted. Mistral's files say `llama`."""

_SAME = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
OFF: tuple[Any, ...] = (0, False, "none", "", [])
"""Values that say that a file does without what the key is about."""


def value_of(reader: gguf.GGUFReader, key: str) -> Any:
    """Return the value of a key of the metadata; None: the file does not have it."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def check_whole(path: Path, reader: gguf.GGUFReader) -> None:
    """Refuse a part of a model, and what is none.

    Raises:
        ModelError: saying what it is.
    """
    parts, kind = value_of(reader, "split.count"), value_of(reader, "general.type")
    if parts is not None and parts > 1:
        raise ModelError(
            f"{path} is part {value_of(reader, 'split.no') + 1} of {parts} of a model that was "
            "split into several files: merge them into one (llama-gguf-split --merge), and give "
            "that"
        )
    if kind not in (None, "model"):
        raise ModelError(f"{path} holds no model, but a GGUF file of the type {kind!r}")


def check_architecture(path: Path, reader: gguf.GGUFReader) -> None:
    """Refuse an architecture that is not supported."""
    architecture = value_of(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path} holds the GGUF architecture {architecture!r}; "
            f"the supported architectures are {', '.join(ARCHITECTURES)}"
        )


def check_metadata(path: Path, reader: gguf.GGUFReader, config: PreTrainedConfig) -> None:
    """Refuse a file whose metadata says other things than the configuration made from it.

    Raises:
        ModelError: naming the key and both values.
    """
    prefix = f"{value_of(reader, 'general.architecture')}."
    stated = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    understood = _understood(config)
    # What absent keys mean, after llama.cpp, src/llama-model.cpp.
    heads: int = config.num_attention_heads
    key_length = stated.get("attention.key_length", config.hidden_size // heads)
    defaults = {
        "attention.head_count_kv": heads,
        "attention.key_length": key_length,
        "attention.value_length": config.hidden_size // heads,
        "rope.dimension_count": key_length,
        "rope.freq_base": 10000.0,
        "vocab_size": config.vocab_size,  # the table of embeddings has it too
    }
    for key, value in understood.items():
        meant = stated.get(key, defaults.get(key))
        if meant != value:
            raise ModelError(
                f"{path} sets {prefix}{key} to {meant!r}, and would be converted to {value!r}"
            )
    for key, value in stated.items():
        if key not in understood and value not in OFF:
            raise ModelError(
                f"{path} sets {prefix}{key} to {value!r}, which is not supported and may change "
                "the results"
            )


def check_tensors(path: Path, reader: gguf.GGUFReader, model: PreTrainedModel) -> dict[str, str]:
    """Refuse a file whose tensors are not those of `model`, which may be on the meta device.

    Returns:
        What the model calls each tensor of the file.

    Raises:
        ModelError: naming a tensor.
    """
    parameters = dict(model.named_parameters())
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    kind = kinds[value_of(reader, "general.architecture")]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    needed = {names.get_name(name, (".weight", ".bias")) or name: name for name in parameters}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if added := stored.keys() - needed.keys():
        raise ModelError(
            f"{path} holds the tensor {min(added)}, which is not supported and may change the "
            "results"
        )
    if lacking := needed.keys() - stored.keys():
        raise ModelError(f"{path} lacks the tensor {min(lacking)}, so it is no whole model")
    for name, target in needed.items():
        found = [int(size) for size in reversed(stored[name].shape)]
        if found != list(parameters[target].shape):
            raise ModelError(
                f"the weights of {path} do not fit its configuration: {target} is {found}, and "
                f"{list(parameters[target].shape)} is needed"
            )
    return needed


def _understood(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what the configuration says, under the names of GGUF."""
    heads: int = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    values = {key: getattr(config, name) for key, name in _SAME.items()}
    values |= dict.fromkeys(_HEAD_WIDTHS, head_dim)
    values["attention.head_count_kv"] = config.num_key_value_heads
    values["rope.freq_base"] = config.rope_parameters["rope_theta"]
    return values
