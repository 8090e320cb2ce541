"""The files of models and checkpoints, given to their readers: a result, or the error they declare.

Manifests, indexes of weights, headers of safetensors and GGUF, files of `torch.save`, DeepSpeed's
`latest`, and the steps of encoders. What a reader believes of a header is then used as the runtime
uses it, so a count that is absurd shows as time or memory.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import gguf
import torch
from safetensors.torch import save

from runtime.checkpoint import CheckpointError, open_layers
from runtime.checkpoint.formats import torch_files as reader_of_torch
from runtime.checkpoint.formats.deepspeed import layer_file
from runtime.checkpoint.formats.native import NativeCheckpoint
from runtime.checkpoint.formats.safetensors_files import read_specs
from runtime.checkpoint.write import MANIFEST
from runtime.language.models.encoder import require_mean_pooling
from runtime.language.models.errors import ModelError
from runtime.language.models.files.beside import files_beside
from runtime.language.models.files.directory import require_all_is_read, weight_map
from runtime.language.models.files.names import CONFIG, ENCODER_STEPS
from runtime.language.models.gguf.header import check_header
from runtime.language.models.weights.hugging_face import read_weights
from schemas import CheckpointManifest, LayerEntry
from schemas.checkpoints import TensorEntry
from tests.tools.fuzz.edits import Seed, edited_bytes, edited_json, edited_numbers
from tests.tools.fuzz.kinds import Edit, Kind, refused

LARGEST = 50_000
"""Bytes of a file."""


def manifests(folder: Path) -> Kind:
    """The manifest of two layers, one of which is stored with the other."""
    manifest = manifest_of_two_layers()
    (folder / manifest.directory).mkdir()
    tensors = {"weight": torch.zeros(2, 3)}
    (folder / manifest.directory / "layer_00.safetensors").write_bytes(save(tensors))
    content = manifest.model_dump_json().encode()
    return _kind([content], edited_json, folder / MANIFEST, read_manifest)


def manifest_of_two_layers() -> CheckpointManifest:
    """The second layer has the tensor of the first."""
    weight = torch.zeros(2, 3)
    tensor = TensorEntry(
        name="weight",
        dtype="float32",
        shape=tuple(weight.shape),
        bytes=weight.nbytes,
        sha256="0" * 64,
        stored_in=0,
        stored_as="weight",
    )
    files, size = ("layer_00.safetensors", None), len(save({"weight": weight}))
    layers = tuple(
        LayerEntry(index=i, module="Linear", file=f, bytes=size if f else 0, tensors=(tensor,))
        for i, f in enumerate(files)
    )
    return CheckpointManifest(directory=f"save-{'0' * 16}", layers=layers)


def read_manifest(file: Path) -> None:
    """Open the checkpoint, and ask for all that it says."""
    source = NativeCheckpoint(file.parent)
    for layer in range(source.layers):
        for tensor in source.tensors(layer).values():
            inside = file.parent.resolve()
            assert tensor.file.parent.parent.resolve() == inside, "a file from elsewhere"
        try:
            source.verify(layer)
        except CheckpointError as error:  # the digests are none
            refused(error)


def indexes(folder: Path) -> Kind:
    """An index of two shards, one of safetensors and one of `torch.save`."""
    tensors = {"a": torch.zeros(2), "b.c": torch.zeros(3)}
    (folder / "1.safetensors").write_bytes(save({"a": tensors["a"]}))
    torch.save({"b.c": tensors["b.c"]}, folder / "2.bin")
    index = {"metadata": {"total_size": 20}, "weight_map": {"a": "1.safetensors", "b.c": "2.bin"}}
    content = json.dumps(index).encode()
    return _kind([content], edited_json, folder / "model.safetensors.index.json", read_index)


def read_index(file: Path) -> None:
    """Ask where tensors are, and what they are."""
    for name in weight_map(file).values():
        inside = file.parent.resolve()
        assert (file.parent / name).resolve().is_relative_to(inside), "a file from elsewhere"
    read_weights(file.parent)


def safetensors_files(folder: Path) -> Kind:
    """A file of two tensors."""
    content = save({"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.int64)})
    return _kind([content], edited_numbers, folder / "model.safetensors", read_specs)


def gguf_files(folder: Path) -> Kind:
    """A model with a tensor, texts, numbers and arrays of both."""
    return _kind([gguf_file()], edited_numbers, folder / "model.gguf", read_gguf)


def gguf_file() -> bytes:
    """The file of a model with a tensor, texts, numbers and arrays of both."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text(""),
        text("scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.5, 1, 2),
    ]
    tensor = text("w") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields) + tensor
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(32)


def read_gguf(file: Path) -> None:
    """Let gguf read what has passed; damage that is left is an error of numpy, at once."""
    check_header(file)
    try:
        gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):
        raise ModelError("damaged") from None


def torch_files(folder: Path) -> Kind:
    """Files of `torch.save`, of which the pickle is edited, or the archive around it."""
    shared = torch.zeros(6)
    contents = []
    for state in ({"w": torch.ones(2, 3), "b": torch.arange(3)}, {"v": shared, "u": shared[2:]}):
        file = io.BytesIO()
        torch.save(state, file)
        contents.append(file.getvalue())
    return _kind(contents, _edited_archive, folder / "model.bin", _read_torch)


def _read_torch(file: Path) -> None:
    for name in reader_of_torch.read_specs(file):
        reader_of_torch.read_tensor(file, name).sum()
    reader_of_torch.verify(file)


def _edited_archive(content: bytes, random: Random, others: list[Seed]) -> bytes:
    if random.random() < 0.4:
        return edited_numbers(content, random, others)
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, "w") as archive:
        chosen = random.choice([*old.namelist(), *["archive/data.pkl"] * 5])
        for record in old.infolist():
            inside = old.read(record)
            if record.filename == chosen:
                inside = edited_bytes(inside, random, [Seed("", inside)])
            archive.writestr(record, inside)
    return new.getvalue()


def latest_files(folder: Path) -> Kind:
    """The tag of DeepSpeed's newest checkpoint, alone and beside the weights of a model."""
    (folder / "tag").mkdir()
    torch.save({"w": torch.zeros(2)}, folder / "tag" / layer_file(0))
    beside = folder / "beside"
    beside.mkdir()
    (beside / "model.safetensors").write_bytes(save({"w": torch.zeros(2)}))

    def read(file: Path) -> None:
        (beside / file.name).write_bytes(file.read_bytes())
        require_all_is_read(beside)
        for index in range(open_layers(folder).layers):
            open_layers(folder).tensors(index)

    return _kind([b"tag", b"tag\n"], edited_bytes, folder / "latest", read)


def encoder_steps(folder: Path) -> Kind:
    """What sentence-transformers does after a model."""
    steps = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(
            (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        )
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / CONFIG).write_text('{"pooling_mode_mean_tokens": true}')

    def read(file: Path) -> None:
        inside = folder.resolve()
        assert all(each.resolve().is_relative_to(inside) for each in files_beside(folder))
        require_mean_pooling(file.parent)

    edit = partial(edited_json, keys=("0", "1", "2"))
    return _kind([json.dumps(steps).encode()], edit, folder / ENCODER_STEPS, read)


def _kind(contents: list[bytes], edit: Edit, file: Path, reader: Callable[[Path], object]) -> Kind:
    """Files that are read from one place."""

    def read(_: Seed, content: bytes, __: Random) -> str:
        file.write_bytes(content[:LARGEST])
        try:
            reader(file)
        except (CheckpointError, ModelError) as error:
            return refused(error)
        return "read"

    return Kind([Seed(file.suffix, content) for content in contents], edit, read)
