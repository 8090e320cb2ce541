"""Load the layers of all stages: first everything is verified everywhere, then modules change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.formats.detect import open_layers
from runtime.checkpoint.formats.source import Source
from runtime.checkpoint.ranks import gather_from_all, on_all_ranks
from runtime.checkpoint.tensors import Spec
from runtime.transport.protocol import Transport


@dataclass(frozen=True)
class Mismatch:
    """What a checkpoint and a model do not have in common, on all stages; empty when `strict`."""

    missing: tuple[str, ...] = ()
    """Tensors that the model has and the checkpoint has not: `layer 3: weight`."""
    unexpected: tuple[str, ...] = ()
    """Tensors that the checkpoint has and the model has not."""


def load_layers(
    layers: Mapping[int, nn.Module],
    total: int,
    directory: Path,
    transport: Transport,
    *,
    strict: bool = True,
) -> Mismatch:
    """Load a checkpoint, whatever the stages and replicas were that saved it.

    Args:
        layers: This stage's layers by global index.
        total: The number of layers of the whole model.
        directory: A checkpoint of this package or of DeepSpeed.
        transport: Connects the ranks and replicas.
        strict: Whether model and checkpoint must have the same tensors. Those that both have must
            have the same shapes and dtypes in any case.

    Returns:
        The tensors that either has alone.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit; no module has changed anywhere.
        RemoteError: another rank failed otherwise; likewise.
    """
    opened: list[Source] = []
    identities = on_all_ranks(transport, lambda: _open(directory, total, opened))
    first = identities[0][0]
    for rank, replicas in enumerate(identities):
        for replica, identity in enumerate(replicas):
            if identity != first:
                raise CheckpointError(
                    f"{directory} is another checkpoint for rank {rank}, replica {replica} "
                    f"than for rank 0: {identity}, not {first}; was it saved meanwhile?"
                )
    source = opened[0]
    mismatch = _verify(source, layers, transport, strict=strict)
    on_all_ranks(transport, lambda: _apply(source, layers))
    return mismatch


def _open(directory: Path, total: int, opened: list[Source]) -> str:
    source = open_layers(directory)
    source.require_layers(total)
    opened.append(source)
    return source.identity


def _verify(
    source: Source, layers: Mapping[int, nn.Module], transport: Transport, *, strict: bool
) -> Mismatch:
    """Verify a layer on each rank in turn, so that no rank waits long for another."""
    own_layers = sorted(layers)
    rounds = max(chain.from_iterable(gather_from_all(transport, len(own_layers))))
    missing: list[str] = []
    unexpected: list[str] = []
    for turn in range(rounds):

        def verify(turn: int = turn) -> Mismatch:
            if turn >= len(own_layers):
                return Mismatch()
            return _verify_layer(source, own_layers[turn], layers[own_layers[turn]], strict=strict)

        for replicas in on_all_ranks(transport, verify):
            missing += replicas[0].missing
            unexpected += replicas[0].unexpected
    return Mismatch(tuple(sorted(missing)), tuple(sorted(unexpected)))


def _verify_layer(source: Source, index: int, layer: nn.Module, *, strict: bool) -> Mismatch:
    source.verify(index)
    stored, state = source.tensors(index), _state(layer)
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError(f"layer {index} is on the meta device, needed one with memory")
    for name in stored.keys() & state.keys():
        needed = Spec.of(state[name])
        if stored[name].spec != needed:
            raise CheckpointError(
                f"{stored[name]} is {stored[name].spec}, and the model needs {needed}"
            )
    missing = sorted(state.keys() - stored.keys())
    unexpected = sorted(stored.keys() - state.keys())
    if strict and missing:
        where = next((f" in {tensor.file}" for tensor in stored.values()), f" in {source.path}")
        raise CheckpointError(
            f"layer {index}{where}: tensor {missing[0]} is missing{_more(missing)}, "
            f"and the model's {type(layer).__name__} needs it{_instead(unexpected)}"
        )
    if strict and unexpected:
        raise CheckpointError(
            f"{stored[unexpected[0]]} is unexpected{_more(unexpected)}: the model's "
            f"{type(layer).__name__} has none of that name"
        )
    return Mismatch(
        tuple(f"layer {index}: {name}" for name in missing),
        tuple(f"layer {index}: {name}" for name in unexpected),
    )


def _apply(source: Source, layers: Mapping[int, nn.Module]) -> None:
    with torch.no_grad():
        for index, layer in layers.items():
            state = _state(layer)
            for name, stored in source.tensors(index).items():
                if name in state:
                    state[name].copy_(stored.read())


def _state(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a layer, as they are in memory."""
    return {
        name: value for name, value in layer.state_dict().items() if isinstance(value, torch.Tensor)
    }


def _instead(names: list[str]) -> str:
    """What there is, for names that a wrapper has changed: `_orig_mod.weight`, `module.weight`."""
    return f"; there is {names[0]} instead{_more(names)}" if names else ""


def _more(names: list[str]) -> str:
    return f" ({len(names) - 1} more)" if len(names) > 1 else ""
