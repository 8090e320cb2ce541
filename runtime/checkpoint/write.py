"""Write files so that the disk has them, and the manifest so that it is whole or not there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from runtime.checkpoint.errors import CheckpointError
from schedcc.io.plain_text import one_line
from schemas import CheckpointManifest

MANIFEST = "manifest.json"
_UNFINISHED = "manifest.json.unfinished"
_SAVE = re.compile(r"save-[0-9a-f]{16}")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Write a safetensors file and wait until the disk has it.

    Args:
        path: The file; there is none yet.
        tensors: On any device, of any strides; they may share memory.

    Returns:
        The size of the file in bytes.

    Raises:
        CheckpointError: it cannot be written; names the file.
    """
    try:
        save_file(_separate(tensors), path, metadata={"format": "pt"})
        synchronise(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {one_line(error)}") from error
    return path.stat().st_size


def commit(directory: Path, manifest: CheckpointManifest) -> None:
    """Make a save the checkpoint of its directory, then remove what former saves left.

    The rename is the commit: before it the directory has the former checkpoint, after it this one.
    What it refers to has to be on the disk before, the entries of directories included.

    Raises:
        CheckpointError: the manifest cannot be written, or a file that it names is not there.
    """
    files = directory / manifest.directory
    for layer in manifest.layers:
        if layer.file is not None and _size(files / layer.file) != layer.bytes:
            raise CheckpointError(
                f"layer {layer.index}: {files / layer.file} is not there with the {layer.bytes} "
                "bytes that were written: all ranks need the same file system"
            )
    unfinished = directory / _UNFINISHED
    try:
        synchronise(files)
        synchronise(directory)
        synchronise(directory.resolve().parent)  # the directory may be new itself
        unfinished.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        synchronise(unfinished)
        unfinished.rename(directory / MANIFEST)
        synchronise(directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory / MANIFEST} cannot be written: {one_line(error)}"
        ) from error
    for entry in directory.iterdir():
        if _SAVE.fullmatch(entry.name) and entry.name != manifest.directory:
            shutil.rmtree(entry, ignore_errors=True)


def is_of_a_save(name: str) -> bool:
    """Whether an entry of a directory is one that saves make."""
    return name in (MANIFEST, _UNFINISHED) or _SAVE.fullmatch(name) is not None


def synchronise(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory: the format has no other."""
    used: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        content = tensor.detach().cpu().contiguous()
        storage = content.untyped_storage().data_ptr()
        whole = content.untyped_storage().nbytes() == content.numel() * content.itemsize
        if storage in used or not whole:
            content = content.clone()
        used.add(storage)
        result[name] = content
    return result
