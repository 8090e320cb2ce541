"""What every format of a checkpoint looks like to those who load, convert or inspect it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats import tensor_files
from runtime.checkpoint.tensors import Spec, digest


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a layer, and where it is stored. Prints as its place, for messages."""

    layer: int
    name: str
    """As in the layer's `state_dict()`."""
    spec: Spec
    file: Path
    stored_as: str
    """Its name in the file. Tied tensors have both in common."""
    sha256: str | None = None
    """Where the format has one."""

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.file}: tensor {self.stored_as}"

    def read(self) -> torch.Tensor:
        """The tensor on the CPU, mostly a view of the file: to be copied, and let go of.

        Raises:
            CheckpointError: it cannot be read.
        """
        tensor = tensor_files.read_tensor(self.file, self.stored_as)
        found = Spec.of(tensor)
        if found != self.spec:
            raise CheckpointError(f"{self} is {found}, needed {self.spec}")
        return tensor

    def verify(self) -> None:
        """Read the tensor to see whether it is what was stored.

        Raises:
            CheckpointError: it is not.
        """
        tensor = self.read()
        if self.sha256 is not None and digest(tensor) != self.sha256:
            raise CheckpointError(f"{self} is damaged: it does not have the checksum of its save")


class Source(Protocol):
    """The layers of a model on disk. Nothing is read before it is asked for."""

    @property
    def kind(self) -> str:
        """The format, for people."""

    @property
    def path(self) -> Path:
        """The directory or file."""

    @property
    def layers(self) -> int:
        """The number of layers that are there."""

    @property
    def identity(self) -> str:
        """Differs between two saves, so that ranks notice when they read different ones."""

    def module(self, layer: int) -> str:
        """The class of a layer, for people; empty where the format does not say."""

    def tensors(self, layer: int) -> Mapping[str, StoredTensor]:
        """The tensors of a layer by name; none for a layer that the source does not know.

        Raises:
            CheckpointError: the layer's file is missing or damaged.
        """

    def verify(self, layer: int) -> None:
        """Read all tensors of a layer to see whether they are what was stored.

        Raises:
            CheckpointError: one is not; names layer, file and tensor.
        """

    def require_layers(self, layers: int) -> None:
        """Refuse a model with another number of layers.

        Raises:
            CheckpointError: naming both numbers.
        """
