"""Save the layers of all stages, in parallel by the data-parallel replicas.

Every rank takes part in every round, so that an error on one ends the save on all of them, and so
that no rank waits long for another that is still writing: a round is one layer's work.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats.source import Source
from runtime.checkpoint.ranks import gather_from_all, on_all_ranks
from runtime.checkpoint.share import shares
from runtime.checkpoint.tensors import digest, dtype_name
from runtime.checkpoint.write import commit, write_tensors
from runtime.transport.protocol import Transport
from schemas import CheckpointManifest, LayerEntry, TensorEntry


@dataclass(frozen=True)
class LayerState:
    """What is saved of a layer."""

    module: str
    """Name of its class, for people."""
    sizes: Callable[[], Sequence[int]]
    """Bytes of its tensors."""
    tensors: Callable[[], Mapping[str, Any]]
    """Its `state_dict()`; asked for when it is needed, and then let go of."""


def state_of_module(layer: nn.Module) -> LayerState:
    """The state of a layer in memory."""

    def sizes() -> list[int]:
        return [value.nbytes for value in layer.state_dict().values() if _is_tensor(value)]

    return LayerState(type(layer).__name__, sizes, layer.state_dict)


def state_of_source(source: Source, index: int) -> LayerState:
    """The state of a layer in another checkpoint."""

    def tensors() -> dict[str, torch.Tensor]:
        return {name: stored.read() for name, stored in source.tensors(index).items()}

    def sizes() -> list[int]:
        return [stored.spec.bytes for stored in source.tensors(index).values()]

    return LayerState(source.module(index), sizes, tensors)


def save_states(
    layers: Mapping[int, LayerState],
    directory: Path,
    transport: Transport,
    *,
    parallel_write: bool = True,
) -> CheckpointManifest:
    """Save a model to a directory all ranks see; each calls this with its own stage's layers.

    Args:
        layers: This stage's layers by global index; the same on all its replicas.
        directory: Made if it is not there. A checkpoint in it is replaced at the end, at once.
        transport: Connects the ranks and replicas.
        parallel_write: Whether each replica writes a share of its stage's layers, balanced by
            bytes, or replica 0 all of them.

    Returns:
        The manifest, the same on all ranks.

    Raises:
        CheckpointError: something cannot be saved or written; the former checkpoint is untouched.
        RemoteError: another rank failed otherwise; likewise.
    """
    name = gather_from_all(transport, f"save-{uuid4().hex[:16]}")[0][0]
    files = directory / name
    first = transport.rank == 0 and transport.replica == 0
    own_layers = _share(layers, transport, parallel_write=parallel_write)
    manifest = _describe(layers, own_layers, name, transport)
    try:
        on_all_ranks(transport, lambda: _make(files))
        manifest = _write(layers, own_layers, manifest, files, transport)
    except Exception:
        if first:
            shutil.rmtree(files, ignore_errors=True)
        raise
    # From here on the files may be what the manifest refers to.
    on_all_ranks(transport, lambda: commit(directory, manifest) if first else None)
    return manifest


def _share(
    layers: Mapping[int, LayerState], transport: Transport, *, parallel_write: bool
) -> Sequence[int]:
    sizes = {index: sum(layer.sizes()) for index, layer in layers.items()}
    return shares(sizes, transport.replicas if parallel_write else 1).get(transport.replica, ())


def _describe(
    layers: Mapping[int, LayerState], own_layers: Sequence[int], name: str, transport: Transport
) -> CheckpointManifest:
    """Agree on what every layer holds, and on which file stores what is there more than once."""
    described = _rounds(transport, own_layers, lambda index: _layer_entry(index, layers[index]))
    described.sort(key=lambda layer: layer.index)
    if [layer.index for layer in described] != list(range(len(described))):
        raise CheckpointError(
            f"the stages have the layers {[layer.index for layer in described]}, needed each from "
            f"0 to {len(described) - 1} once"
        )
    return CheckpointManifest(directory=name, layers=tuple(stored_once(described)))


def stored_once(layers: Iterable[LayerEntry]) -> Iterator[LayerEntry]:
    """Let the first of several equal matrices be stored for all, and give the layers their files.

    Tied weights are equal bit by bit, on whichever stages they are. Vectors, such as the norms
    that nobody has trained yet, may be equal by chance, and stay in the files of their layers.
    """
    stored: dict[tuple[str, str, tuple[int, ...]], TensorEntry] = {}
    for layer in layers:
        tensors = []
        for tensor in layer.tensors:
            first = stored.setdefault((tensor.sha256, tensor.dtype, tensor.shape), tensor)
            place = {"stored_in": first.stored_in, "stored_as": first.stored_as}
            tensors.append(tensor.model_copy(update=place) if len(tensor.shape) > 1 else tensor)
        own = any(_is_own(tensor, layer.index) for tensor in tensors)
        file = f"layer_{layer.index:02d}.safetensors" if own else None
        yield layer.model_copy(update={"file": file, "tensors": tuple(tensors)})


def _write(
    layers: Mapping[int, LayerState],
    own_layers: Sequence[int],
    manifest: CheckpointManifest,
    files: Path,
    transport: Transport,
) -> CheckpointManifest:
    def write(index: int) -> LayerEntry:
        entry = manifest.layers[index]
        if entry.file is None:
            return entry
        state = layers[index].tensors()
        stored = {t.name: state[t.name] for t in entry.tensors if _is_own(t, index)}
        size = write_tensors(files / entry.file, stored)
        return entry.model_copy(update={"bytes": size})

    written = _rounds(transport, own_layers, write)
    written.sort(key=lambda layer: layer.index)
    return manifest.model_copy(update={"layers": tuple(written)})


def _rounds(
    transport: Transport, own_layers: Sequence[int], work: Callable[[int], LayerEntry]
) -> list[LayerEntry]:
    """Do `work` for each of this rank's layers, in step with the others; returns what all did."""
    rounds = max(chain.from_iterable(gather_from_all(transport, len(own_layers))))
    done: list[LayerEntry] = []
    for turn in range(rounds):
        action = lambda turn=turn: work(own_layers[turn]) if turn < len(own_layers) else None  # noqa: E731
        done += _present(chain.from_iterable(on_all_ranks(transport, action)))
    return done


def _present(entries: Iterable[LayerEntry | None]) -> Iterable[LayerEntry]:
    return (entry for entry in entries if entry is not None)


def _layer_entry(index: int, layer: LayerState) -> LayerEntry:
    tensors = []
    for name, tensor in layer.tensors().items():
        if not _is_tensor(tensor):
            raise CheckpointError(
                f"layer {index} has the state {name} of type {type(tensor).__name__}, "
                "and only tensors can be saved"
            )
        entry = TensorEntry(
            name=name,
            dtype=dtype_name(tensor.dtype),
            shape=tuple(tensor.shape),
            bytes=tensor.nbytes,
            sha256=digest(tensor),
            stored_in=index,
            stored_as=name,
        )
        tensors.append(entry)
    return LayerEntry(index=index, module=layer.module, file=None, bytes=0, tensors=tuple(tensors))


def _is_own(tensor: TensorEntry, index: int) -> bool:
    return (tensor.stored_in, tensor.stored_as) == (index, tensor.name)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _make(files: Path) -> None:
    try:
        files.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{files} cannot be made: {error.strerror}") from error
