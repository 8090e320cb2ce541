"""Random edits of the files of models, given to their readers: a result, or the error they declare.

Manifests of checkpoints, indexes of weights, and headers of safetensors and GGUF. What a reader
believes of a header is then used as the runtime uses it, so a count that is absurd shows as time or
memory. `python -m tests.tools.fuzz_models --number 100000` tries as many (`make fuzz` does).
"""

import json
import signal
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import gguf
import torch
from safetensors.torch import save

from runtime.checkpoint import CheckpointError
from runtime.checkpoint.formats.native import NativeCheckpoint
from runtime.checkpoint.formats.safetensors_files import read_specs
from runtime.checkpoint.write import MANIFEST
from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import weight_map
from runtime.language.models.gguf.header import check_header
from schemas import CheckpointManifest, LayerEntry
from schemas.checkpoints import TensorEntry
from tests.tools.edits import Seed, edited_bytes, edited_values
from tests.tools.fuzz import SECONDS, command_line

LARGEST = 50_000
"""Bytes of a file."""


def manifest() -> bytes:
    """The manifest of two layers, one of which is stored with the other."""
    tensor = TensorEntry(
        name="weight",
        dtype="float32",
        shape=(2, 3),
        bytes=24,
        sha256="0" * 64,
        stored_in=0,
        stored_as="weight",
    )
    files = ("layer_00.safetensors", None)
    layers = tuple(
        LayerEntry(index=i, module="Linear", file=file, bytes=96 if file else 0, tensors=(tensor,))
        for i, file in enumerate(files)
    )
    return (
        CheckpointManifest(directory=f"save-{'0' * 16}", layers=layers).model_dump_json().encode()
    )


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


def read_manifest(file: Path) -> None:
    """Open the checkpoint, and ask for all that it says."""
    source = NativeCheckpoint(file.parent)
    for layer in range(source.layers):
        for tensor in source.tensors(layer).values():
            inside = file.parent.resolve()
            assert tensor.file.parent.parent.resolve() == inside, "a file from elsewhere"


def read_index(file: Path) -> None:
    """Ask where tensors are."""
    for name in weight_map(file).values():
        inside = file.parent.resolve()
        assert (file.parent / name).resolve().is_relative_to(inside), "a file from elsewhere"


def read_safetensors(file: Path) -> None:
    """Ask what tensors there are."""
    read_specs(file)


def read_gguf(file: Path) -> None:
    """Let gguf read what has passed; damage that is left is an error of numpy, at once."""
    check_header(file)
    try:
        gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):
        raise ModelError("damaged") from None


READERS: dict[str, Callable[[Path], None]] = {
    MANIFEST: read_manifest,
    "model.safetensors.index.json": read_index,
    "model.safetensors": read_safetensors,
    "model.gguf": read_gguf,
}
"""By the name of the file."""


def seeds() -> dict[str, Seed]:
    """A valid file for each reader."""
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors", "b.c": "2.st"}}
    contents = (
        manifest(),
        json.dumps(index).encode(),
        save({"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.int64)}),
        gguf_file(),
    )
    return {
        name: Seed(Path(name).suffix, content)
        for name, content in zip(READERS, contents, strict=True)
    }


def edited(seed: Seed, random: Random, others: list[Seed]) -> bytes:
    """The content of a file with a few random edits, among them numbers of all sizes."""
    if seed.suffix == ".json" and random.random() < 0.5:
        return edited_values(seed.content, random)[:LARGEST]
    content = edited_bytes(seed.content, random, others)
    if seed.suffix in (".gguf", ".safetensors") and random.random() < 0.5 and len(content) > 8:
        at = random.randrange(len(content) - 8)
        number = random.choice((0, 1, 9, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
        content = content[:at] + struct.pack("<Q", number) + content[at + 8 :]
    return content[:LARGEST]


def fuzz(number: int, seed: int, folder: Path) -> Counter[str]:
    """Try `number` files; how many of each kind were read, and how many refused.

    Raises:
        AssertionError: a reader broke its promise; the file is kept in the working directory.
    """
    random, files = Random(seed), seeds()
    counts: Counter[str] = Counter()
    for attempt in range(number):
        name = random.choice(list(files))
        content = edited(files[name], random, list(files.values()))
        (folder / name).write_bytes(content)
        signal.alarm(SECONDS)
        try:
            READERS[name](folder / name)
            counts[f"{name} read"] += 1
        except (CheckpointError, ModelError):
            counts[f"{name} refused"] += 1
        except Exception as error:
            kept = Path(f"fuzz-{seed}-{attempt}-{name}").resolve()
            kept.write_bytes(content)
            found = f"{type(error).__name__}: {error}"
            raise AssertionError(
                f"attempt {attempt} of seed {seed}: {found}; see {kept}"
            ) from error
        finally:
            signal.alarm(0)
    return counts


def main() -> None:
    """Try as many files as asked for, and print what became of them."""
    command_line(
        fuzz,
        megabytes=500,
        form=lambda name, count: f"{name}: {count}",
        description=main.__doc__,
    )


if __name__ == "__main__":
    main()
