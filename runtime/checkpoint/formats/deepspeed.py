"""Checkpoints in the layout of DeepSpeed's pipeline engine, read and written without DeepSpeed.

::

    DIR/latest                                    the name of the newest tag
    DIR/tag/layer_00-model_states.pt              a flat dict of one layer's state
    DIR/tag/layer_01-model_00-model_states.pt     the same, with the rank of tensor parallelism
    DIR/tag/mp_rank_00_model_states.pt            the engine's own state, not read

Layers without state have an empty dict, plain functions have no file, so numbers may be missing.
Source: `PipelineModule.ckpt_layer_path` and `DeepSpeedEngine.save_checkpoint` in deepspeed 0.19.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats import torch_files
from runtime.checkpoint.formats.source import StoredTensor

LATEST = "latest"
_FILE = re.compile(r"layer_(\d+)(?:-\w+_\d+)*-model_states\.pt")
_LONGEST_TAG = 4096
_EXPERT = re.compile(r"(layer_\d+_)?expert_\d+_.*model_states\.pt")


class DeepSpeedCheckpoint:
    """The layers of one tag; a `Source`."""

    kind = "DeepSpeed"

    def __init__(self, path: Path) -> None:
        """Find the layers in a directory of a tag, or of several with the newest in `latest`.

        Raises:
            CheckpointError: there are none, or a layer is split over ranks of tensor parallelism.
        """
        self.path = path
        self._directory = _tag_directory(path)
        self._files = _layer_files(self._directory)

    @property
    def layers(self) -> int:
        """One more than the highest index; plain functions may follow."""
        return max(self._files) + 1

    @property
    def identity(self) -> str:
        """The tag."""
        return self._directory.name

    def module(self, layer: int) -> str:  # noqa: ARG002 (the format does not say)
        """Nothing: the format does not say."""
        return ""

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """The tensors of a layer; see `Source`."""
        file = self._files.get(layer)
        if file is None:
            return {}
        try:
            specs = torch_files.read_specs(file)
        except CheckpointError as error:
            raise CheckpointError(f"layer {layer}: {error}") from error
        return {name: StoredTensor(layer, name, spec, file, name) for name, spec in specs.items()}

    def verify(self, layer: int) -> None:
        """Compare the layer's file with its CRC-32s."""
        if layer in self._files:
            try:
                torch_files.verify(self._files[layer])
            except CheckpointError as error:
                raise CheckpointError(f"layer {layer}: {error}") from error

    def require_layers(self, layers: int) -> None:
        """Refuse a model with fewer layers; behind the last file there may be functions."""
        if layers < self.layers:
            raise CheckpointError(
                f"{self._directory} holds layer {self.layers - 1}, and the model has {layers} "
                "layers from 0 on"
            )


def layer_file(layer: int) -> str:
    """The name of a layer's file.

    >>> layer_file(7)
    'layer_07-model_states.pt'
    """
    return f"layer_{layer:02d}-model_states.pt"


def is_deepspeed(path: Path) -> bool:
    """Whether a directory looks like one of DeepSpeed's."""
    return (path / LATEST).is_file() or any(_FILE.fullmatch(f.name) for f in path.iterdir())


def _tag_directory(path: Path) -> Path:
    latest = path / LATEST
    if not latest.is_file():
        return path
    with latest.open("rb") as file:
        tag = file.read(_LONGEST_TAG).decode("utf-8", "replace").strip()
    if tag in ("", "..") or Path(tag).name != tag or not os.path.isdir(path / tag):
        raise CheckpointError(f"{latest} names the tag {tag!r}, and there is no such directory")
    return path / tag


def _layer_files(directory: Path) -> dict[int, Path]:
    found: defaultdict[int, list[Path]] = defaultdict(list)
    for file in sorted(directory.iterdir()):
        if _EXPERT.match(file.name):
            raise CheckpointError(
                f"{file} holds an expert of a layer: mixtures of experts are not supported"
            )
        match = _FILE.fullmatch(file.name)
        if match:
            found[int(match[1])].append(file)
    if not found:
        raise CheckpointError(f"{directory} holds no layer, such as {layer_file(0)}")
    for layer, files in found.items():
        if len(files) > 1:
            raise CheckpointError(
                f"layer {layer} is split over {len(files)} files, {files[0]} and others: "
                "layers that were tensor-parallel are not supported"
            )
    return {layer: files[0] for layer, files in found.items()}
