"""Checkpoints by layer: saved and loaded with any number of stages and replicas, or converted."""

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats.deepspeed import DeepSpeedCheckpoint
from runtime.checkpoint.formats.detect import open_layers
from runtime.checkpoint.formats.native import NativeCheckpoint
from runtime.checkpoint.formats.single_file import FileOfTensors
from runtime.checkpoint.formats.source import Source, StoredTensor
from runtime.checkpoint.load import Mismatch, load_layers
from runtime.checkpoint.save import LayerState, save_states, state_of_module, state_of_source

__all__ = [
    "CheckpointError",
    "DeepSpeedCheckpoint",
    "FileOfTensors",
    "LayerState",
    "Mismatch",
    "NativeCheckpoint",
    "Source",
    "StoredTensor",
    "load_layers",
    "open_layers",
    "save_states",
    "state_of_module",
    "state_of_source",
]
