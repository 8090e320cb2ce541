"""Checkpoints from one format into another, a layer at a time.

What lies beside a model's weights (its configuration and tokenizer) comes along, so that a
converted model can be evaluated, and be converted back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch

from runtime.checkpoint import CheckpointError, Source, save_states, state_of_source
from runtime.checkpoint.deepspeed import LATEST, layer_file
from runtime.checkpoint.tensors import digest
from runtime.checkpoint.write import MANIFEST, write_tensors
from runtime.models.families import Family
from runtime.models.hugging_face import WEIGHT_FILES
from runtime.models.sources import family_of_config, is_tied, open_source, read_config
from runtime.transport import InMemoryNetwork

Format = Literal["layers", "deepspeed", "hf"]
TAG = "converted"
_BESIDE = (".json", ".txt", ".model", ".jinja")


def convert(name: str, destination: Path, to: Format, config: Path | None = None) -> str:
    """Convert a checkpoint; what is there is whole, or not there at all.

    Args:
        name: As of `runtime.models.sources.open_source`.
        destination: A directory that does not exist or is empty; or, for `layers`, a checkpoint
            that is to be replaced.
        to: The format.
        config: For `hf`: a directory with the model's `config.json`, if the source has none.

    Returns:
        What was written, for people.

    Raises:
        CheckpointError, ModelError: the source cannot be read, the destination not be written to,
            or the one cannot be expressed as the other.
    """
    source = open_source(name)
    replaces = to == "layers" and (destination / MANIFEST).is_file()
    if (
        destination.exists()
        and not replaces
        and (not destination.is_dir() or any(destination.iterdir()))
    ):
        raise CheckpointError(f"{destination} is there already, needed an empty or new directory")
    beside = _beside(config or source.path)
    if to == "layers":
        destination.mkdir(parents=True, exist_ok=True)
        _copy(beside, destination)
        states = {index: state_of_source(source, index) for index in range(source.layers)}
        save_states(states, destination, InMemoryNetwork(1).endpoint(0))
    elif to == "deepspeed":
        _at_once(destination, lambda place: _write_deepspeed(source, place, beside))
    else:
        directory = config or source.path
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"{directory} has no config.json, which a Hugging Face directory needs: "
                "name the model's directory with --config"
            )
        _at_once(destination, lambda place: _write_hugging_face(source, directory, place, beside))
    count = sum(len(source.tensors(index)) for index in range(source.layers))
    return f"{source.layers} layers, {count} tensors"


def _beside(directory: Path) -> list[Path]:
    """The small files of a model's directory that are not its weights."""
    if not directory.is_dir():
        return []
    weights = {f"{name}.index.json" for name in WEIGHT_FILES} | {"manifest.json"}
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix in _BESIDE and path.name not in weights
    ]


def _copy(files: list[Path], destination: Path) -> None:
    for file in files:
        if file.parent.resolve() != destination.resolve():
            shutil.copyfile(file, destination / file.name)


def _at_once(destination: Path, write: Callable[[Path], None]) -> None:
    """Make a directory with what `write` puts into it, or nothing."""
    unfinished = destination.with_name(f".{destination.name}.{uuid4().hex[:8]}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        if destination.is_dir():
            destination.rmdir()
        unfinished.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_deepspeed(source: Source, place: Path, beside: list[Path]) -> None:
    """Write the layers of one tag: what `PipelineModule.load_state_dir` of DeepSpeed reads."""
    (place / TAG).mkdir()
    for index in range(source.layers):
        state = {name: stored.read().clone() for name, stored in source.tensors(index).items()}
        torch.save(state, place / TAG / layer_file(index))
    (place / LATEST).write_text(TAG, encoding="utf-8")
    _copy(beside, place)


def _write_hugging_face(source: Source, config: Path, place: Path, beside: list[Path]) -> None:
    """Write a shard for each layer that has tensors, and their index."""
    settings = read_config(config)
    family = family_of_config(config, settings)
    num_blocks = settings[family.num_blocks_key]
    source.require_layers(num_blocks + 2)
    tied = is_tied(config)
    weight_map: dict[str, str] = {}
    total = 0
    for index in range(num_blocks + 2):
        state = {}
        for name, stored in source.tensors(index).items():
            if tied and name == "projection.weight" and _is_embedding(source, stored.read()):
                continue
            state[_name_in_model(family, index, num_blocks, name)] = stored.read()
        if state:
            shard = f"model-{index + 1:05d}-of-{num_blocks + 2:05d}.safetensors"
            write_tensors(place / shard, state)
            weight_map |= dict.fromkeys(state, shard)
            total += sum(tensor.nbytes for tensor in state.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2))
    _copy(beside, place)


def _is_embedding(source: Source, head: torch.Tensor) -> bool:
    embedding = source.tensors(0).get("tokens.weight")
    return embedding is not None and digest(embedding.read()) == digest(head)


def _name_in_model(family: Family, layer: int, num_blocks: int, name: str) -> str:
    """The name of a layer's tensor in transformers' checkpoints of the whole model."""
    part, _, rest = name.partition(".")
    parts = family.parts(layer, num_blocks)
    if part not in parts:
        raise CheckpointError(
            f"tensor {name} of layer {layer} is no part of the model that config.json describes, "
            f"whose parts are {', '.join(sorted(parts)) or 'none'}"
        )
    current = f"{parts[part]}.{rest}"
    for old, new in family.renamed.items():
        if new and current.startswith(f"{new}."):
            return old + current.removeprefix(new)
    return current
