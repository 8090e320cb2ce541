"""Open whatever holds the weights of a model: a name, a file, a directory."""

from __future__ import annotations

from pathlib import Path

from runtime.checkpoint import CheckpointError, FileOfTensors, Source, open_layers
from runtime.language.models.described import describe
from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import is_by_layers, require_all_is_read
from runtime.language.models.files.names import CONFIG, TENSOR_FILES
from runtime.language.models.locate import SMOLLM2, locate_model
from runtime.language.models.weights.fit import require_fit
from runtime.language.models.weights.hugging_face import HuggingFaceCheckpoint


def open_source(name: str) -> Source:
    """Open a checkpoint by layers, or a single file of tensors as if it were one layer.

    Args:
        name: `smollm2`, the path of a GGUF file (converted once, into the cache), of a file of
            tensors, or of a directory: Hugging Face's, this package's or DeepSpeed's.

    Raises:
        ModelError, CheckpointError: there is no such thing, or it is damaged or not supported.
    """
    path = Path(name)
    if name == SMOLLM2 or path.suffix == ".gguf":
        return open_hugging_face(locate_model(name).directory)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_file():
        if path.suffix not in TENSOR_FILES:
            raise CheckpointError(
                f"{path} is none of the files that are known: .gguf, {', '.join(TENSOR_FILES)}"
            )
        return FileOfTensors(path)
    require_all_is_read(path)
    if (path / CONFIG).is_file() and not is_by_layers(path):
        return open_hugging_face(path)
    return open_layers(path)


def open_hugging_face(directory: Path) -> HuggingFaceCheckpoint:
    """Open the weights of a Hugging Face directory.

    Raises:
        ModelError: the configuration is damaged, or its model cannot be split.
    """
    return describe(directory, str(directory)).weights(directory)


def require_model(name: str, source: Source, directory: Path) -> None:
    """Refuse weights that are not those that a configuration asks for, as an evaluation does.

    Of weights by layers, a configuration that describes no model that can be split says nothing
    that can be asked.

    Args:
        name: What messages call the model.
        source: The weights.
        directory: Holds the configuration.

    Raises:
        ModelError, CheckpointError: naming a tensor that is missing, or that belongs to no layer.
    """
    try:
        described = describe(directory, name)
    except ModelError:
        if isinstance(source, HuggingFaceCheckpoint):
            raise
        return
    require_all_is_read(directory)
    require_fit(name, source, described.layers)
