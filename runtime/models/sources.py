"""Open whatever holds the weights of a model: a name, a file, a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.checkpoint import CheckpointError, FileOfTensors, Source, open_layers
from runtime.models.directory import is_by_layers, read_object, require_all_is_read
from runtime.models.errors import ModelError
from runtime.models.families import ENCODERS, FAMILIES, Family
from runtime.models.hugging_face import HuggingFaceCheckpoint
from runtime.models.locate import SMOLLM2, locate_model
from runtime.models.quiet import LOCAL, quiet_transformers

_TENSOR_FILES = (".safetensors", ".pt", ".bin", ".pth")


def open_source(name: str) -> Source:
    """Open a checkpoint by layers, or a single file of tensors as if it were one layer.

    Args:
        name: `smollm2`, the path of a GGUF file (converted once, into the cache), of a file of
            tensors, or of a directory: Hugging Face's, this package's or DeepSpeed's.

    Raises:
        ModelError, CheckpointError: there is no such thing, or it is damaged or not supported.
    """
    path = Path(name)
    if name == SMOLLM2 or path.suffix == ".gguf":
        return open_hugging_face(locate_model(name).directory)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        if path.suffix not in _TENSOR_FILES:
            raise CheckpointError(
                f"{path} is none of the files that are known: .gguf, {', '.join(_TENSOR_FILES)}"
            )
        return FileOfTensors(path)
    require_all_is_read(path)
    if (path / "config.json").is_file() and not is_by_layers(path):
        return open_hugging_face(path)
    return open_layers(path)


def open_hugging_face(directory: Path) -> HuggingFaceCheckpoint:
    """Open the weights of a Hugging Face directory.

    Raises:
        ModelError: the family is not supported, or the configuration is damaged.
    """
    config = read_config(directory)
    family = family_of_config(directory, config)
    num_blocks = config.get(family.num_blocks_key)
    if not isinstance(num_blocks, int) or num_blocks < 1:
        raise ModelError(
            f"the configuration of {directory} sets {family.num_blocks_key} to {num_blocks!r}, "
            "and an integer of at least 1 is needed"
        )
    return HuggingFaceCheckpoint(directory, family, num_blocks, tied=is_tied(directory))


def read_config(directory: Path) -> Mapping[str, Any]:
    """The `config.json` of a directory.

    Raises:
        ModelError: it is missing or damaged.
    """
    return read_object(directory / "config.json")


def family_of_config(directory: Path, config: Mapping[str, Any]) -> Family:
    """The family of a causal language model or an encoder.

    Raises:
        ModelError: naming the supported families.
    """
    model_type = config.get("model_type")
    families = {**FAMILIES, **ENCODERS}
    if not isinstance(model_type, str) or model_type not in families:
        raise ModelError(
            f"{directory} is of the model family {model_type!r}; "
            f"the supported families are {', '.join(sorted(families))}"
        )
    return families[model_type]


def is_tied(directory: Path) -> bool:
    """Whether the head has the weight of the embedding: a key whose default families differ in."""
    from transformers import AutoConfig

    with quiet_transformers():
        config = AutoConfig.from_pretrained(directory, **LOCAL)
    return bool(config.tie_word_embeddings)
