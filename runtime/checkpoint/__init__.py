"""Checkpoints by layer: saved and loaded with any number of stages and replicas, or converted."""

from runtime.checkpoint.deepspeed import DeepSpeedCheckpoint
from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats import open_layers
from runtime.checkpoint.load import Mismatch, load_layers
from runtime.checkpoint.native import NativeCheckpoint
from runtime.checkpoint.save import save_layers
from runtime.checkpoint.source import Source, StoredTensor

__all__ = [
    "CheckpointError",
    "DeepSpeedCheckpoint",
    "Mismatch",
    "NativeCheckpoint",
    "Source",
    "StoredTensor",
    "load_layers",
    "open_layers",
    "save_layers",
]
