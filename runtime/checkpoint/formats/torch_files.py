"""Files of `torch.save`: one flat dict of tensors each.

Nothing that is pickled in them is run (`weights_only=True`). The file is
mapped, so that of a large one only the tensors that are copied become resident.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.tensors import Spec
from schedcc.io.plain_text import one_line

_DAMAGE = (
    *(OSError, ValueError, RuntimeError, EOFError, OverflowError),
    *(zipfile.BadZipFile, struct.error),
)
"""What Python's reader of zip files raises."""


def read_specs(path: Path) -> dict[str, Spec]:
    """The tensors of a file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something else.
    """
    return {name: Spec.of(tensor) for name, tensor in _load(path).items()}


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor, as a view of the file that lives as long as the tensor.

    Raises:
        CheckpointError: the file is missing or damaged, or does not hold the tensor.
    """
    tensors = _load(path)
    if name not in tensors:
        raise CheckpointError(f"{path} does not hold tensor {name}")
    return tensors[name]


def verify(path: Path) -> None:
    """Compare the contents of a file with the CRC-32 of each of its records.

    Raises:
        CheckpointError: they differ; names the tensor, where it is one.
    """
    tensors = _load(path)
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged or cut off: {one_line(error)}") from error
    if damaged is not None:
        what = _tensors_of(damaged, tensors)
        raise CheckpointError(f"{what} in {path} is damaged: it does not have its CRC-32")


def _load(path: Path) -> dict[str, torch.Tensor]:
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is missing")
    _require_as_written(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # Damaged files surface as exceptions of pickle, zip files, torch and the system.
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, needed a dict of tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {name!r} of type {type(value).__name__}, needed a dict of tensors"
            )
    return content


def _require_as_written(path: Path) -> None:
    """Refuse records that together may be any number of times larger than the file.

    `torch.save` compresses none, and lets none lie in another.
    """
    try:
        with zipfile.ZipFile(path) as file:
            records, size = file.infolist(), path.stat().st_size
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged, cut off, or older than torch 1.6 ({one_line(error)}): "
            "needed the zip file that torch.save writes"
        ) from error
    packed = [record for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path} cannot be read: its record {packed[0].filename} is compressed, "
            "needed a file of torch.save"
        )
    if sum(record.file_size for record in records) > size:
        raise CheckpointError(
            f"{path} cannot be read: its records overlap, needed a file of torch.save"
        )


def _tensors_of(record: str, tensors: dict[str, torch.Tensor]) -> str:
    """Name the tensors in a record `archive/data/N`: N counts storages, in order of first use."""
    parent, _, number = record.rpartition("/")
    if not parent.endswith("/data"):
        return f"record {record}"
    numbers: dict[int, int] = {}
    names = [
        name
        for name, tensor in tensors.items()
        if str(numbers.setdefault(tensor.untyped_storage().data_ptr(), len(numbers))) == number
    ]
    return f"tensor {' or '.join(names)}" if names else f"record {record}"
