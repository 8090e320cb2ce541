"""Convert a GGUF file tensor by tensor, after a check that nothing of the model is lost by it.

Names, forms and values of the tensors are those that transformers gives them when it loads the
file. It would hold the whole model in float32, three times over; here a few of the largest tensors
are in memory at a time.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from runtime.language.models.errors import ModelError
from runtime.language.models.files.names import WEIGHT_INDEXES
from runtime.language.models.gguf.check import (
    check_architecture,
    check_metadata,
    check_tensors,
    check_whole,
    value_of,
)
from runtime.language.models.gguf.header import check_header
from runtime.language.models.gguf.tokenizer import load_gguf_tokenizer
from runtime.language.models.quiet import LOCAL, quiet_transformers
from schedcc.io.plain_text import one_line

SHARD_BYTES = 32 * 2**20
"""Of a file of the result, unless the model has a larger tensor, which then decides."""


def convert(path: Path, directory: Path) -> None:
    """Write the model of the GGUF file at `path` into `directory`, in Hugging Face's format.

    Raises:
        ModelError: the file is damaged, or holds what transformers would leave out or change.
        OSError, SafetensorError: `directory` cannot be written to.
    """
    with quiet_transformers(), redirect_stderr(StringIO()):  # one of the bars knows no other way
        # Alone in a directory, since transformers prefers a tokenizer that lies beside the file.
        with _reading(path), TemporaryDirectory() as alone:
            check_header(path)
            (Path(alone) / "model.gguf").symlink_to(path.resolve())
            source = {"gguf_file": "model.gguf", **LOCAL}
            reader = GGUFReader(path)
            check_whole(path, reader)
            check_architecture(path, reader)
            config = AutoConfig.from_pretrained(alone, **source)
            check_metadata(path, reader, config)
            loader: Any = AutoModelForCausalLM
            with torch.device("meta"):
                model: PreTrainedModel = loader.from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
            names = check_tensors(path, reader, model)
            tokenizer = load_gguf_tokenizer(path, reader, alone, source)
        _write_weights(_tensors(path, reader, config.to_dict(), names), directory)
        _write_config(model, directory)
        tokenizer.save_pretrained(directory)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # Damaged files surface as whatever numpy, gguf and transformers stumble over.
        raise ModelError(
            f"{path} cannot be read, and may be damaged or cut off: {one_line(error)}"
        ) from error


def _tensors(
    path: Path, reader: GGUFReader, config: dict[str, Any], names: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors in float32, each as transformers makes it of that of the file."""
    architecture = value_of(reader, "general.architecture")
    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = kind(config=config)
    for stored in reader.tensors:
        with _reading(path):
            values = dequantize(stored.data, stored.tensor_type)
            values = processor.process(weights=values, name=stored.name).weights
            tensor = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
            del values
            _forget(reader)
        yield names[stored.name], tensor


def _forget(reader: GGUFReader) -> None:
    """Let go of the pages of the mapped file that have been read."""
    mapped: Any = reader.data
    mapped._mmap.madvise(mmap.MADV_DONTNEED)


def _write_weights(tensors: Iterator[tuple[str, torch.Tensor]], directory: Path) -> None:
    """Write shards that are no larger than they have to be, and their index."""
    weight_map: dict[str, str] = {}
    total, largest, gathered = 0, SHARD_BYTES, dict[str, torch.Tensor]()

    def write() -> None:
        shard = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(gathered, directory / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(gathered, shard))
        gathered.clear()

    size = 0
    for name, tensor in tensors:
        largest = max(largest, tensor.nbytes)
        if gathered and size + tensor.nbytes > largest:
            write()
            size = 0
        gathered[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / WEIGHT_INDEXES[0]).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_config(model: PreTrainedModel, directory: Path) -> None:
    """Write what `save_pretrained` of a model writes beside its weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
