"""Checkpoints from one format into another, a layer at a time.

What lies beside a model's weights (its configuration and tokenizer) comes along, so that a
converted model can be evaluated, and be converted back. All of it takes its place in one step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Literal

import torch

from runtime.checkpoint import CheckpointError, Source, save_states, state_of_source
from runtime.checkpoint.formats.deepspeed import LATEST, layer_file
from runtime.checkpoint.replace import at_once
from runtime.checkpoint.tensors import digest
from runtime.checkpoint.write import MANIFEST, is_of_a_save, write_tensors
from runtime.language.models.described import describe
from runtime.language.models.files.beside import files_beside
from runtime.language.models.files.names import BESIDE_WEIGHTS, CONFIG, WEIGHT_INDEXES
from runtime.language.models.sources import open_source, require_model
from runtime.language.models.weights.hugging_face import HuggingFaceCheckpoint
from runtime.transport import SingleProcessTransport

Format = Literal["layers", "deepspeed", "hf"]
TAG = "converted"


def convert(name: str, destination: Path, to: Format, config: Path | None = None) -> str:
    """Convert a checkpoint; what is there is whole, or there is what was there before.

    Everything is written into a directory beside the destination, which then takes its name. Before
    that the checkpoint has to hold what its configuration asks for, as before an evaluation, and
    to have its checksums, where the format keeps some.

    Args:
        name: As of `runtime.language.models.sources.open_source`.
        destination: A directory that does not exist or is empty; or, for `layers`, a checkpoint
            that is to be replaced, with the configuration and the tokenizer beside it.
        to: The format.
        config: A directory with the model's `config.json`, if the source has none.

    Returns:
        What was written, for people, and what was left out.

    Raises:
        CheckpointError, ModelError: the source cannot be read or is no whole model, the destination
            cannot be written to, or the one cannot be expressed as the other.
    """
    source = open_source(name)
    directory = config or source.path
    beside = {file: file.relative_to(directory) for file in files_beside(directory)}
    _require_place(destination, to, BESIDE_WEIGHTS.union(path.parts[0] for path in beside.values()))
    if (directory / CONFIG).is_file():
        require_model(name, source, directory)
    elif config is not None or to == "hf":
        hint = "" if config else ": name the model's directory with --config"
        raise CheckpointError(
            f"{directory} has no config.json, which a Hugging Face directory needs{hint}"
        )
    for index in range(source.layers):
        source.verify(index)

    def write(place: Path) -> None:
        if to == "layers":
            _write_layers(source, place)
        elif to == "deepspeed":
            _write_deepspeed(source, place)
        else:
            _write_hugging_face(source, directory, place)
        for file, path in beside.items():
            (place / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place / path)

    at_once(destination, write)
    return _summary(source)


def _summary(source: Source) -> str:
    count = sum(len(source.tensors(index)) for index in range(source.layers))
    summary = f"{source.layers} layers, {count} tensors"
    left_out = source.left_out() if isinstance(source, HuggingFaceCheckpoint) else []
    if left_out:
        summary += (
            f"; left out, since no evaluation uses them: {len(left_out)} "
            f"tensor{'s' * (len(left_out) > 1)}, {left_out[0]} among them"
        )
    return summary


def _require_place(destination: Path, to: Format, replaced: Set[str]) -> None:
    """Refuse to write where something is, if it is not a checkpoint and files named `replaced`."""
    if not destination.exists():
        return
    entries = sorted(destination.iterdir()) if destination.is_dir() else [destination]
    if not entries and destination.is_dir():
        return
    if to != "layers" or not (destination / MANIFEST).is_file():
        raise CheckpointError(f"{destination} is there already, needed an empty or new directory")
    for entry in entries:
        if entry.name not in replaced and not is_of_a_save(entry.name):
            raise CheckpointError(
                f"{destination} is there already and holds {entry.name}, which is no part of a "
                "checkpoint by layers and would be removed: move it away, or name a new directory"
            )


def _write_layers(source: Source, place: Path) -> None:
    states = {index: state_of_source(source, index) for index in range(source.layers)}
    save_states(states, place, SingleProcessTransport())


def _write_deepspeed(source: Source, place: Path) -> None:
    """Write the layers of one tag: what `PipelineModule.load_state_dir` of DeepSpeed reads."""
    (place / TAG).mkdir()
    for index in range(source.layers):
        state = {name: stored.read().clone() for name, stored in source.tensors(index).items()}
        torch.save(state, place / TAG / layer_file(index))
    (place / LATEST).write_text(TAG, encoding="utf-8")


def _write_hugging_face(source: Source, config: Path, place: Path) -> None:
    """Write a shard for each layer that has tensors, and their index."""
    described = describe(config, str(config))
    files = described.weights(config)
    layers = len(described.layers)
    source.require_layers(layers)
    ties = described.model.all_tied_weights_keys
    written: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    total = 0
    for index in range(layers):
        state = {}
        for name, stored in source.tensors(index).items():
            target = _name_in_model(described.names[index], index, name)
            tensor = stored.read()
            if target in ties and written.get(ties[target]) == digest(tensor):
                continue
            state[target] = tensor
            if target in ties.values():
                written[target] = digest(tensor)
        state = files.conversion.to_files(state)
        if state:
            shard = f"model-{index + 1:05d}-of-{layers:05d}.safetensors"
            write_tensors(place / shard, state)
            weight_map |= dict.fromkeys(state, shard)
            total += sum(tensor.nbytes for tensor in state.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (place / WEIGHT_INDEXES[0]).write_text(json.dumps(index_file, indent=2))


def _name_in_model(names: Mapping[str, str], layer: int, name: str) -> str:
    """What transformers calls a layer's tensor."""
    if name not in names:
        raise CheckpointError(
            f"tensor {name} of layer {layer} is no part of the model that config.json describes, "
            f"whose tensors there are {', '.join(sorted(names)) or 'none'}"
        )
    return names[name]
