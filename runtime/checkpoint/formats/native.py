"""Checkpoints of this package: a manifest, and a safetensors file for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from runtime.checkpoint.errors import CheckpointError, require_layers
from runtime.checkpoint.formats.safetensors_files import read_specs
from runtime.checkpoint.formats.source import StoredTensor
from runtime.checkpoint.tensors import Spec, dtype_named
from runtime.checkpoint.write import MANIFEST
from schedcc.io.bounded import TooLargeError, content_of
from schemas import CheckpointManifest, LayerEntry

MOST_BYTES = 2**28
"""Of a manifest; a tensor takes some 300 of them."""


class NativeCheckpoint:
    """The checkpoint that a directory's manifest describes; a `Source`."""

    kind = "per-layer safetensors"

    def __init__(self, path: Path) -> None:
        """Read the manifest.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        self.path = path
        self.manifest = _read_manifest(path / MANIFEST)
        self._files = path / self.manifest.directory

    @property
    def layers(self) -> int:
        """The number of layers of the model."""
        return len(self.manifest.layers)

    @property
    def identity(self) -> str:
        """The name of the save."""
        return self.manifest.directory

    def module(self, layer: int) -> str:
        """The class that the layer had."""
        return self._entry(layer).module

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """The tensors of a layer; see `Source`."""
        return {
            tensor.name: StoredTensor(
                layer,
                tensor.name,
                Spec(dtype_named(tensor.dtype), tensor.shape),
                self._file(tensor.stored_in),
                tensor.stored_as,
                tensor.sha256,
            )
            for tensor in self._entry(layer).tensors
        }

    def verify(self, layer: int) -> None:
        """Compare the sizes of the layer's files, their headers and tensors with the manifest."""
        entry = self._entry(layer)
        for stored_in in sorted({tensor.stored_in for tensor in entry.tensors} | {layer}):
            self._verify_file(self._entry(stored_in))
        for tensor in self.tensors(layer).values():
            tensor.verify()

    def require_layers(self, layers: int) -> None:
        """Refuse a model with another number of layers; see `Source`."""
        require_layers(self.path, self.layers, layers)

    def _entry(self, layer: int) -> LayerEntry:
        return self.manifest.layers[layer]

    def _file(self, layer: int) -> Path:
        file = self._entry(layer).file
        assert file is not None, "the manifest was checked to refer to what is there"
        return self._files / file

    def _verify_file(self, entry: LayerEntry) -> None:
        if entry.file is None:
            return
        file = self._files / entry.file
        place = f"layer {entry.index}, {file}"
        if not file.is_file():
            raise CheckpointError(f"{place}: the file is missing")
        size = file.stat().st_size
        if size != entry.bytes:
            raise CheckpointError(f"{place}: the file has {size} bytes, needed {entry.bytes}")
        try:
            found = read_specs(file)
        except CheckpointError as error:
            raise CheckpointError(f"layer {entry.index}: {error}") from error
        own = {
            tensor.stored_as: Spec(dtype_named(tensor.dtype), tensor.shape)
            for tensor in entry.tensors
            if tensor.stored_in == entry.index
        }
        for name in sorted(found.keys() | own.keys()):
            if found.get(name) != own.get(name):
                raise CheckpointError(
                    f"{place}: tensor {name} is {found.get(name, 'not there')}, "
                    f"needed {own.get(name, 'none of that name')}"
                )


def _read_manifest(path: Path) -> CheckpointManifest:
    try:
        manifest = CheckpointManifest.model_validate_json(content_of(path, MOST_BYTES))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no checkpoint: {path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except TooLargeError as error:
        raise CheckpointError(f"{path} is damaged: it {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path} is damaged: {f'{place}: ' * bool(place)}{first['msg']}"
        ) from error
    try:
        for layer in manifest.layers:
            for tensor in layer.tensors:
                dtype_named(tensor.dtype)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: layer {layer.index}, tensor {tensor.name}: {error}"
        ) from error
    return manifest
