"""Which format a directory is in."""

from __future__ import annotations

from pathlib import Path

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats.deepspeed import DeepSpeedCheckpoint, is_deepspeed
from runtime.checkpoint.formats.native import NativeCheckpoint
from runtime.checkpoint.formats.source import Source
from runtime.checkpoint.write import MANIFEST


def open_layers(directory: Path) -> Source:
    """Open a checkpoint that is stored by layers: this package's or DeepSpeed's.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is no directory, needed that of a checkpoint")
    if (directory / MANIFEST).is_file():
        return NativeCheckpoint(directory)
    if is_deepspeed(directory):
        return DeepSpeedCheckpoint(directory)
    raise CheckpointError(
        f"{directory} holds no checkpoint: it has neither {MANIFEST} nor DeepSpeed's "
        "layer_NN-model_states.pt"
    )
