"""The small files of a model's directory that are not its weights."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.language.models.files.names import BY_LAYERS, CONFIG, ENCODER_STEPS, WEIGHT_INDEXES

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
        modules = json.loads((directory / ENCODER_STEPS).read_text(encoding="utf-8"))
        places = [directory / entry["path"] / CONFIG for entry in modules if entry["path"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [path for path in places if path.parent.parent == directory and path.is_file()]
