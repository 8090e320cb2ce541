"""Files of tensors, by their suffix: `.safetensors`, or else those of `torch.save`."""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.checkpoint.formats import safetensors_files, torch_files
from runtime.checkpoint.tensors import Spec


def read_specs(path: Path) -> dict[str, Spec]:
    """The tensors of a file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something else.
    """
    if _is_safetensors(path):
        return safetensors_files.read_specs(path)
    return torch_files.read_specs(path)


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor, as a view of the file that lives as long as the tensor.

    Raises:
        CheckpointError: the file is missing or damaged, or does not hold the tensor.
    """
    if _is_safetensors(path):
        return safetensors_files.read_tensor(path, name)
    return torch_files.read_tensor(path, name)


def verify(path: Path) -> None:
    """Compare the contents of a file with its checksums, where it has some.

    Raises:
        CheckpointError: they differ.
    """
    if not _is_safetensors(path):
        torch_files.verify(path)


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"
