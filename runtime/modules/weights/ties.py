"""Ties: weights that layers of several stages share.

Layers are tied by the key of their `TiedLayerSpec`; modules of the list are tied where they hold
the same parameter or buffer (a head that uses the embedding's weight, or a module that occurs
twice). On one process tied weights are one tensor, and whoever writes to it writes to all. Between
processes they are compared by digest when the evaluator is made and whenever an evaluation starts,
and those that differ are handed over, bit for bit: from the first stage that has them when the
evaluator is made, later from the stage where they were changed.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from runtime.failure.errors import AgreementError
from runtime.modules.division import Division
from runtime.modules.layers import Layer, TiedLayer, TiedLayerSpec
from runtime.modules.weights.digests import complete, local
from runtime.transport.protocol import Transport


class TieError(ValueError):
    """A tie has come undone on one stage."""


class Tie(NamedTuple):
    """What tied layers have in common."""

    kind: str
    """`"key"` of a `TiedLayerSpec`, or `"parameter"` or `"buffer"` of a module."""
    name: Hashable
    """The key, or the layer and the name where the tensor is first met in the list."""

    def __str__(self) -> str:
        return f"tied {self.kind} {self.name!r}"


class TensorState(NamedTuple):
    """What a stage says of one tensor of a tie."""

    kind: str
    """Dtype and shape."""
    digest: str | None
    """`None`: it is not compared, because forwards change it."""
    changed: bool
    """Whether it was written to since the stages last agreed on it."""


State = Mapping[Tie, Mapping[str, TensorState]]
"""What a rank says of its ties, by the names of their tensors."""

Layers = Mapping[int, nn.Module]
"""The layers of a rank, by their index in the model."""


class Ties:
    """The ties of one stage with others."""

    def __init__(self, layers: Sequence[Layer], division: Division, here: int) -> None:
        """Find the ties between ranks.

        Args:
            layers: All layers, the same on every process.
            division: How they are divided.
            here: This rank.
        """
        ties = _ties_of_layers(layers)
        self.holders = _holders(ties, division)
        """The ranks that hold each tie, in the order of their layers, where they are several."""
        self.names = [
            {name for tie, name in layer.items() if tie in self.holders and name is not None}
            for layer in ties
        ]
        """The tensors of each module that a tie makes equal on all ranks."""
        self._here, self._division = here, division
        self._places: dict[Tie, tuple[int, str | None]] = {}
        for index in division.layers_of(here):
            for tie, name in ties[index].items():
                if tie in self.holders:
                    self._places.setdefault(tie, (index, name))
        self._agreed: dict[tuple[Tie, str], str] = {}

    def __bool__(self) -> bool:
        return bool(self.holders)

    def state(self, layers: Layers, ignored: Collection[tuple[int, str]] = ()) -> State:
        """What this rank says of its ties.

        Args:
            layers: Those that it holds.
            ignored: Tensors that forwards change, by layer and name.

        Raises:
            TieError: a tied tensor is no longer there.
        """
        found: dict[Tie, dict[str, TensorState]] = {}
        for tie, (index, _) in self._places.items():
            found[tie] = {}
            for name, (full_name, tensor) in self._tensors(layers, tie).items():
                own = local(tensor)
                digest = None if (index, full_name) in ignored else complete(own)
                kind = f"{str(own.dtype).removeprefix('torch.')}{list(own.shape)}"
                changed = digest not in (None, self._agreed.get((tie, name), digest))
                found[tie][name] = TensorState(kind, digest, changed)
        return found

    def hold(self, layers: Layers, gathered: Sequence[State], transport: Transport) -> None:
        """Make tied weights equal on all ranks; all of them have to call this.

        Args:
            layers: Those of this rank.
            gathered: The state of its tied tensors on each rank.
            transport: Connection to them.

        Raises:
            AgreementError: they have other shapes or dtypes, or several ranks changed them.
        """
        moves = [move for tie in self.holders for move in self._moves(tie, gathered)]
        if moves:
            self._hand_over(layers, moves, transport)
        for tie in self._places:
            ranks = self.holders[tie]
            for name in gathered[self._here][tie]:
                states = {rank: gathered[rank][tie][name] for rank in ranks}
                digest = states[_source(ranks, list(states.values()))].digest
                if digest is not None:
                    self._agreed[tie, name] = digest

    def _hand_over(self, layers: Layers, moves: Sequence["_Move"], transport: Transport) -> None:
        here = self._here
        own = [move for move in moves if here in (move.source, move.destination)]
        transport.connect(
            receives_from={move.source for move in own} - {here},
            sends_to={move.destination for move in own} - {here},
        )
        for move in own:
            tensor = local(self._tensors(layers, move.tie)[move.name][1].detach())
            if here == move.source:
                transport.wait(transport.post_send([tensor.contiguous()], move.destination))
            else:
                memory = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                transport.wait(transport.post_receive([memory], move.source))
                with torch.no_grad():
                    tensor.copy_(memory)

    def _moves(self, tie: Tie, gathered: Sequence[State]) -> list["_Move"]:
        """What has to be handed over, in the same order on every rank."""
        ranks, name_of = self.holders[tie], self._division.name
        owner = ranks[0]
        kinds = {
            rank: ", ".join(
                f"{name} {state.kind}".strip() for name, state in gathered[rank][tie].items()
            )
            for rank in ranks
        }
        for rank in ranks:
            if kinds[rank] != kinds[owner]:
                raise AgreementError(
                    f"{tie} is {kinds[owner]} on {name_of(owner)}, {kinds[rank]} on {name_of(rank)}"
                )
        found: list[_Move] = []
        for name in gathered[owner][tie]:
            states = [gathered[rank][tie][name] for rank in ranks]
            if None in {state.digest for state in states}:
                continue
            source = _source(ranks, states)
            changed = [rank for rank, state in zip(ranks, states, strict=True) if state.changed]
            digest = gathered[source][tie][name].digest
            for rank, state in zip(ranks, states, strict=True):
                if state.changed and state.digest != digest:
                    raise AgreementError(
                        f"{tie} was changed on {' and '.join(map(name_of, changed))} in "
                        "different ways since the last evaluation, needed on one of them, or alike"
                    )
                if state.digest != digest:
                    found.append(_Move(tie, name, source, rank))
        return found

    def _tensors(self, layers: Layers, tie: Tie) -> dict[str, tuple[str, torch.Tensor]]:
        """The tensors of a tie: by name, with the name in the layer."""
        index, name = self._places[tie]
        layer = layers[index]
        prefix = "module." if isinstance(layer, TiedLayer) else ""
        module = layer.module if isinstance(layer, TiedLayer) else layer
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        if name is None:
            return {own: (prefix + own, tensor) for own, tensor in tensors.items()}
        tensors = dict(_named_tensors(layer))
        if name not in tensors:
            raise TieError(f"{tie} is no longer there: the layer has no {name!r}")
        return {"": (name, tensors[name])}


class _Move(NamedTuple):
    tie: Tie
    name: str
    source: int
    destination: int


def _source(ranks: Sequence[int], states: Sequence[TensorState]) -> int:
    """The rank whose tensor counts: the first that changed it, or else the first."""
    changed = (rank for rank, state in zip(ranks, states, strict=True) if state.changed)
    return next(changed, ranks[0])


def _holders(ties: Sequence[Mapping[Tie, str | None]], division: Division) -> dict[Tie, list[int]]:
    ranks: defaultdict[Tie, list[int]] = defaultdict(list)
    for index, layer_ties in enumerate(ties):
        rank = division.rank_of(index)
        for tie in layer_ties:
            if rank not in ranks[tie]:
                ranks[tie].append(rank)
    return {tie: held for tie, held in ranks.items() if len(held) > 1}


def _ties_of_layers(layers: Sequence[Layer]) -> list[dict[Tie, str | None]]:
    """The ties that each layer could have, with the tensor's name (`None`: the whole layer)."""
    first: dict[Any, Tie] = {}
    found: list[dict[Tie, str | None]] = []
    for index, layer in enumerate(layers):
        ties: dict[Tie, str | None] = {}
        if isinstance(layer, TiedLayerSpec):
            ties[Tie("key", layer.key)] = None
        elif isinstance(layer, nn.Module):
            for name, tensor in _named_tensors(layer):
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                ties[first.setdefault(_memory(tensor), Tie(kind, (index, name)))] = name
        found.append(ties)
    return found


def _memory(tensor: torch.Tensor) -> Any:
    """The same for tensors that are one, or lie in the same memory in the same way."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _named_tensors(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *layer.named_parameters(remove_duplicate=False),
        *layer.named_buffers(remove_duplicate=False),
    ]
