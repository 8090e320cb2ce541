"""The small files of a model's directory that are not its weights."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.language.models.directory import WEIGHT_FILES

MODEL_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
        "1_Pooling",
        "2_Normalize",
    }
)
"""What they are called: nobody misses them where another model takes their place."""

_KINDS = (".json", ".txt", ".model", ".jinja")


def files_beside(directory: Path) -> list[Path]:
    """The configuration, the tokenizer, and what else describes a model in words."""
    if not directory.is_dir():
        return []
    weights = {f"{name}.index.json" for name in WEIGHT_FILES} | {"manifest.json"}
    files = [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix in _KINDS and path.name not in weights
    ]
    return files + _modules(directory)


def _modules(directory: Path) -> list[Path]:
    """The configurations of the steps that sentence-transformers takes after the model."""
    try:
        modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
        places = [directory / entry["path"] / "config.json" for entry in modules if entry["path"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [path for path in places if path.parent.parent == directory and path.is_file()]
