"""Open whatever holds the weights of a model: a name, a file, a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.checkpoint import CheckpointError, FileOfTensors, Source, open_layers
from runtime.language.models.directory import is_by_layers, read_object, require_all_is_read
from runtime.language.models.errors import ModelError
from runtime.language.models.families import ENCODERS, FAMILIES, Family
from runtime.language.models.hugging_face import HuggingFaceCheckpoint
from runtime.language.models.locate import SMOLLM2, locate_model
from runtime.language.models.quiet import LOCAL, quiet_transformers

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


def require_model(name: str, source: Source, directory: Path) -> None:
    """Refuse weights that are not those that a configuration asks for, as an evaluation does.

    Of weights by layers, the configuration of another family says nothing that can be asked.

    Args:
        name: What messages call the model.
        source: The weights.
        directory: Holds the configuration.

    Raises:
        ModelError, CheckpointError: naming a tensor that is missing, or that belongs to no layer.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from runtime.language.models.encoder import require_mean_pooling, split_encoder
    from runtime.language.models.fit import require_fit
    from runtime.language.models.lazy import without_memory
    from runtime.language.models.split import split_causal_lm

    config = read_config(directory)
    model_type = config.get("model_type")
    if not isinstance(source, HuggingFaceCheckpoint) and model_type not in {*FAMILIES, *ENCODERS}:
        return
    family_of_config(directory, config)
    require_all_is_read(directory)
    if model_type in ENCODERS:
        require_mean_pooling(directory)
        layers = split_encoder(without_memory(directory, name, AutoModel, torch.float32))
    else:
        layers = split_causal_lm(
            without_memory(directory, name, AutoModelForCausalLM, torch.float32)
        )
    require_fit(name, source, layers)
