"""Ties: weights that layers of several stages share.

Layers are tied by the key of their `TiedLayerSpec`; modules of the list are tied where they hold
the same parameter (a head that uses the embedding's weight, or a module that occurs twice). On one
process tied weights are one tensor. Between processes they are compared by digest when the
evaluator is made, and stages that differ from the first get its tensors, bit for bit.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import nn

from runtime.activation import Signature, signature_of
from runtime.agreement import AgreementError
from runtime.failure.guard import Guard
from runtime.layers import Layer, TiedLayer, TiedLayerSpec
from runtime.transport.protocol import Transport, as_bytes

Tensors = list[torch.Tensor]


class Tie(NamedTuple):
    """What tied layers have in common."""

    kind: str
    """`"key"` of a `TiedLayerSpec`, or `"parameter"` of a module."""
    name: Hashable
    """The key, or the layer and the name where the parameter is first met in the list."""

    def __str__(self) -> str:
        return f"tied {self.kind} {self.name!r}"


def build_with_ties(
    layers: Sequence[Layer],
    boundaries: Sequence[int],
    transport: Transport,
    guard: Guard,
    build: Callable[[], nn.Sequential],
) -> nn.Sequential:
    """Build this stage, with the tied weights of the first stage that has them.

    Without ties between stages nothing is communicated; with them, all stages have to call this.

    Args:
        layers: All layers, the same on every process.
        boundaries: How they are divided.
        transport: Connection to the other stages.
        guard: Tells them of a stage that cannot be built.
        build: Makes the layers of this stage, on its device.

    Raises:
        RemoteError: another stage could not be built.
        AgreementError: tied weights have different shapes or dtypes.
    """
    ties = _ties_of_layers(layers)
    holders = _holders(ties, boundaries)
    if not holders:
        return build()
    here, first = transport.stage_id, boundaries[transport.stage_id]
    mine: dict[Tie, Tensors] = {}
    with guard.run("the making") as run:
        run.phase("the building of tied layers", waits_for="", patient=True)
        stage = build()
        for module, layer_ties in zip(stage, ties[first:], strict=False):
            for tie, name in layer_ties.items():
                if tie in holders:
                    mine.setdefault(tie, _tensors(module, name))
        summary = {tie: (signature_of(tensors), _digest(tensors)) for tie, tensors in mine.items()}
        run.phase("the handing over of tied weights")
        summaries = transport.gather_objects(summary)
        _hand_over(mine, list(_moves(holders, summaries)), here, transport)
    return stage


class _Move(NamedTuple):
    tie: Tie
    source: int
    destination: int


def _moves(
    holders: Mapping[Tie, Sequence[int]], summaries: Sequence[Mapping[Tie, tuple[Signature, str]]]
) -> Iterator[_Move]:
    """The ties that have to be handed over, in the same order on every stage."""
    for tie, (owner, *others) in holders.items():
        shape, digest = summaries[owner][tie]
        for other in others:
            found, other_digest = summaries[other][tie]
            if _kinds(found) != _kinds(shape):
                raise AgreementError(f"{tie} is {shape} on stage {owner}, {found} on stage {other}")
            if other_digest != digest:
                yield _Move(tie, owner, other)


def _kinds(signature: Signature) -> list[tuple[Any, ...]]:
    """What has to be the same of tensors that are tied; strides may differ."""
    return [(tensor.shape, tensor.dtype) for tensor in signature.tensors]


def _hand_over(
    mine: Mapping[Tie, Tensors], moves: Sequence[_Move], here: int, transport: Transport
) -> None:
    own = [move for move in moves if here in (move.source, move.destination)]
    if moves:
        transport.connect(
            receives_from={move.source for move in own} - {here},
            sends_to={move.destination for move in own} - {here},
        )
    for move in own:
        tensors = mine[move.tie]
        if here == move.source:
            payload = [tensor.detach().contiguous() for tensor in tensors]
            transport.wait(transport.post_send(payload, move.destination))
        else:
            memory = [
                torch.empty_like(tensor, memory_format=torch.contiguous_format)
                for tensor in tensors
            ]
            transport.wait(transport.post_receive(memory, move.source))
            with torch.no_grad():
                for tensor, received in zip(tensors, memory, strict=True):
                    tensor.copy_(received)


def _holders(
    ties: Sequence[Mapping[Tie, str | None]], boundaries: Sequence[int]
) -> dict[Tie, list[int]]:
    """The stages that hold each tie, in order, where they are several."""
    stages: defaultdict[Tie, list[int]] = defaultdict(list)
    for stage_id in range(len(boundaries) - 1):
        for layer_ties in ties[boundaries[stage_id] : boundaries[stage_id + 1]]:
            for tie in layer_ties:
                if stage_id not in stages[tie]:
                    stages[tie].append(stage_id)
    return {tie: held for tie, held in stages.items() if len(held) > 1}


def _ties_of_layers(layers: Sequence[Layer]) -> list[dict[Tie, str | None]]:
    """The ties that each layer could have, with the parameter's name (`None`: the whole layer)."""
    first: dict[int, tuple[int, str]] = {}
    found: list[dict[Tie, str | None]] = []
    for index, layer in enumerate(layers):
        ties: dict[Tie, str | None] = {}
        if isinstance(layer, TiedLayerSpec):
            ties[Tie("key", layer.key)] = None
        elif isinstance(layer, nn.Module):
            for name, parameter in layer.named_parameters(remove_duplicate=False):
                place = first.setdefault(id(parameter), (index, name))
                ties[Tie("parameter", place)] = name
        found.append(ties)
    return found


def _tensors(layer: nn.Module, name: str | None) -> Tensors:
    if name is not None:
        return [layer.get_parameter(name).detach()]
    module = layer.module if isinstance(layer, TiedLayer) else layer
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def _digest(tensors: Tensors) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(as_bytes(tensor.cpu().contiguous()).numpy().data)
    return digest.hexdigest()
