"""What lies in a model's directory: which weights are read, and nothing beside them that counts.

Whatever would change the model and is not read is refused by its name: an adapter, a second set of
weights, notes on quantisation. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtime.language.models.errors import ModelError
from runtime.language.models.files.names import (
    ADAPTERS,
    BY_LAYERS,
    CONFIG,
    OTHER_COPIES,
    QUANTISATION,
    WEIGHTS,
)
from schedcc.io.bounded import content_of
from schedcc.io.plain_text import encodable

MOST_BYTES = 2**27
"""Of a JSON file of a model; the index of the largest models has some ten megabytes."""

MOST_LAYERS = 2**16
"""Of a model, and experts of a layer; those that there are have some hundreds."""
_NUMBER_OF_LAYERS = re.compile(r"(?<!per_)(layers?|experts?)(_num)?$")
"""Keys such as `num_hidden_layers`, `n_layer`, `n_routed_experts` and `zero_expert_num`, and none
such as `vocab_size_per_layer_input`."""

LONGEST_NAME = 255
"""Bytes of the name of a file on all systems."""


_LAYERS = "layer_*-model_states.pt"
"""Files of a tag of DeepSpeed's."""


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(content_of(path, MOST_BYTES).decode())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too large
        raise ModelError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a directory: read here, and nowhere else.

    Raises:
        ModelError: it is missing or damaged, or names more layers than any model has.
    """
    config = read_object(directory / CONFIG)
    _require_few_layers(directory / CONFIG, config)
    return config


def _require_few_layers(path: Path, config: dict[str, Any]) -> None:
    """Refuse numbers of layers and experts for which transformers would build for days."""
    settings = [config]
    while settings:
        for key, value in settings.pop().items():
            if isinstance(value, dict):
                settings.append(value)
            elif type(value) is int and value > MOST_LAYERS and _NUMBER_OF_LAYERS.search(key):
                raise ModelError(f"{path} sets {key} to {value}, needed at most {MOST_LAYERS:,}")


def weight_entry(directory: Path) -> Path | None:
    """The file that the weights of a directory are in, or the index of several; None: neither.

    Raises:
        ModelError: there are both, of one format, and the index does not mean the file.
    """
    for name in WEIGHTS:
        whole, index = directory / name, directory / f"{name}.index.json"
        if whole.is_file():
            if index.is_file() and set(weight_map(index).values()) != {name}:
                raise ModelError(
                    f"{directory} holds two sets of weights, {name} and those that {index.name} "
                    "names: move one of them away"
                )
            return whole
        if index.is_file():
            return index
    return None


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor, as an index says.

    Raises:
        ModelError: the index is damaged.
    """
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"{index} is damaged: needed a weight_map from tensors to files")
    for file in set(files.values()):
        require_inside(index, file)
    return files


def require_inside(told: Path, name: str) -> None:
    """Refuse a name in a file that leads out of the directory of that file.

    Links are followed: the cache of Hugging Face is made of them.

    Raises:
        ModelError: naming both.
    """
    path, plain = Path(name), "\0" not in name and name == encodable(name)
    plain = plain and all(len(part.encode()) <= LONGEST_NAME for part in path.parts)
    if not name or not plain or path.is_absolute() or ".." in path.parts:
        raise ModelError(f"{told} names {name!r}, needed a place in the directory that it is in")


def is_by_layers(directory: Path) -> bool:
    """Whether a directory holds the weights by layers, and not in Hugging Face's format."""
    return weight_entry(directory) is None and _first(directory, BY_LAYERS) is not None


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights in any format."""
    return weight_entry(directory) is not None or is_by_layers(directory)


def require_all_is_read(directory: Path) -> None:
    """Refuse a directory with files that would change the model, and that nobody reads.

    Raises:
        ModelError: naming the file.
    """
    entry = weight_entry(directory)
    _refuse_adapter(directory)
    note = _first(directory, QUANTISATION)
    if note is not None:
        raise _quantised(f"{directory} ({note})")
    if (directory / CONFIG).is_file():
        settings = read_config(directory)
        for key in ("quantization_config", "compression_config"):
            if settings.get(key) is not None:
                raise _quantised(str(directory))
    if entry is None:
        return
    layers = _checkpoint_by_layers(directory)
    if layers is not None:
        raise ModelError(
            f"{directory} holds two sets of weights, {entry.name} and those by layers that "
            f"{layers} names: move one of them away"
        )
    indexed = weight_map(entry).values() if entry.suffix == ".json" else ()
    for file in sorted(directory.glob("*.safetensors")):
        if file.name not in {entry.name, *indexed} and not file.name.startswith(OTHER_COPIES):
            raise ModelError(
                f"{directory} holds {file.name} beside its weights ({entry.name}), which would not "
                "be read: move it away if it is no part of the model"
            )


def _refuse_adapter(directory: Path) -> None:
    adapter = _first(directory, ADAPTERS)
    if adapter is None:
        return
    if has_weights(directory):
        raise ModelError(
            f"{directory} holds an adapter ({adapter}) beside the weights of the model, which "
            "would be left out: merge it into them (merge_and_unload of peft), or move it away"
        )
    config = directory / ADAPTERS[0]
    base = read_object(config).get("base_model_name_or_path") if config.is_file() else None
    raise ModelError(
        f"{directory} holds an adapter alone ({adapter}), no model: merge it into "
        f"{repr(base) if base else 'the model that it is for'} (merge_and_unload of peft), save "
        "the result, and give the directory of that"
    )


def _quantised(where: str) -> ModelError:
    return ModelError(f"{where} holds quantised weights, of which only GGUF is supported")


def _checkpoint_by_layers(directory: Path) -> str | None:
    """The file that says that there is a checkpoint by layers; other programs use its name too."""
    manifest, latest = (directory / file for file in BY_LAYERS)
    try:
        if {"layers", "directory"} <= read_object(manifest).keys():
            return manifest.name
    except ModelError:
        pass  # there is none, or it is of another program
    if latest.is_file():
        with latest.open("rb") as file:
            tag = file.read(LONGEST_NAME + 1).decode("utf-8", "replace").strip()
        inside = Path(tag).name == tag != ".." and os.path.isdir(directory / tag)
        if inside and any((directory / tag).glob(_LAYERS)):
            return latest.name
    return None


def _first(directory: Path, names: Iterable[str]) -> str | None:
    return next((name for name in names if (directory / name).is_file()), None)
