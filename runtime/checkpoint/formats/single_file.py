"""One file of tensors, as if it were a checkpoint of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats import tensor_files
from runtime.checkpoint.formats.source import StoredTensor


class FileOfTensors:
    """A safetensors file, or one of `torch.save`; a `Source` of a single layer."""

    kind = "a file of tensors"
    layers = 1

    def __init__(self, path: Path) -> None:
        """Name the file; it is read when it is asked for."""
        self.path = path

    @property
    def identity(self) -> str:
        """The file."""
        return str(self.path)

    def module(self, layer: int) -> str:  # noqa: ARG002 (the format does not say)
        """Nothing: the format does not say."""
        return ""

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """All tensors of the file; see `Source`."""
        return {
            name: StoredTensor(layer, name, spec, self.path, name)
            for name, spec in tensor_files.read_specs(self.path).items()
        }

    def verify(self, layer: int) -> None:
        """Read everything; only files of `torch.save` have checksums."""
        tensor_files.verify(self.path)
        for tensor in self.tensors(layer).values():
            tensor.verify()

    def require_layers(self, layers: int) -> None:
        """Refuse a model with another number of layers; see `Source`."""
        if layers != 1:
            raise CheckpointError(f"{self.path} holds 1 layer, and the model has {layers}")
