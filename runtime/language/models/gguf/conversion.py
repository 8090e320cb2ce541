"""Let transformers convert a GGUF file, after a check that nothing of the model is lost by it."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.language.models.errors import ModelError, one_line
from runtime.language.models.gguf.check import (
    check_architecture,
    check_metadata,
    check_tensors,
    check_whole,
)
from runtime.language.models.gguf.header import check_header
from runtime.language.models.gguf.tokenizer import load_gguf_tokenizer
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.models.weights.fit import require_fully_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def convert(path: Path, directory: Path) -> None:
    """Write the model of the GGUF file at `path` into `directory`, in Hugging Face's format.

    Raises:
        ModelError: the file is damaged, or holds what transformers would leave out or change.
        OSError, SafetensorError: `directory` cannot be written to.
    """
    with quiet_transformers(), redirect_stderr(StringIO()):  # one of the bars knows no other way
        model, tokenizer = _read(path)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    try:
        check_header(path)
        # Alone in a directory, since transformers prefers a tokenizer that lies beside the file.
        with TemporaryDirectory() as alone:
            (Path(alone) / "model.gguf").symlink_to(path.resolve())
            return _load(path, {"gguf_file": "model.gguf", **LOCAL}, alone)
    except ModelError:
        raise
    except Exception as error:
        # Damaged files surface as whatever numpy, gguf and transformers stumble over.
        raise ModelError(
            f"{path} cannot be read, and may be damaged or cut off: {one_line(error)}"
        ) from error


def _load(
    path: Path, source: dict[str, Any], directory: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    reader = GGUFReader(path)
    check_whole(path, reader)
    check_architecture(path, reader)
    config = AutoConfig.from_pretrained(directory, **source)
    check_metadata(path, reader, config)
    check_tensors(path, reader, config)
    tokenizer = load_gguf_tokenizer(path, reader, directory, source)
    loader: Any = AutoModelForCausalLM
    loaded, report = loader.from_pretrained(
        directory,
        **source,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    require_fully_loaded(str(path), report)
    # transformers does not save a model that came from GGUF, only one of the same weights.
    model: PreTrainedModel = type(loaded).from_pretrained(
        None, config=config, state_dict=loaded.state_dict(), dtype=torch.float32
    )
    return model, tokenizer
