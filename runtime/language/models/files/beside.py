"""The small files of a model's directory that are not its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from runtime.language.models.files.directory import MOST_BYTES
from runtime.language.models.files.names import BY_LAYERS, CONFIG, ENCODER_STEPS, WEIGHT_INDEXES
from schedcc.io.bounded import content_of

_KINDS = (".json", ".txt", ".model", ".jinja")


def files_beside(directory: Path) -> list[Path]:
    """The configuration, the tokenizer, and what else describes a model in words."""
    if not directory.is_dir():
        return []
    weights = {*WEIGHT_INDEXES, *BY_LAYERS}
    files = [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix in _KINDS and path.name not in weights
    ]
    return files + _modules(directory)


def _modules(directory: Path) -> list[Path]:
    """The configurations of the steps that sentence-transformers takes after the model."""
    try:
        modules = json.loads(content_of(directory / ENCODER_STEPS, MOST_BYTES).decode())
        places = [directory / entry["path"] / CONFIG for entry in modules if entry["path"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []
    return [path for path in places if path.parent.parent == directory and os.path.isfile(path)]
