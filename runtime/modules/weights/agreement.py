"""Weights: what processes make sure of before an evaluation, beside the data.

- *Ties* hold, see `runtime.modules.weights.ties`.
- *Replicas* evaluate one model: parameters and persistent buffers of a stage are the same in all.
- *Layers that every process has built* (modules of the list) have the same parameters: where each
  process draws its own, the stages together are a model that nobody has made. Layers that have
  changed since, because weights were loaded, are not compared.

For the last two, samples are compared (see `runtime.modules.weights.digests`): cheap, and enough to
tell apart weights that were drawn or loaded differently. What forwards write to, such as a counter,
is a state of the layer, and not compared any more.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from runtime.distributed.agreement import require_same
from runtime.failure.errors import AgreementError
from runtime.modules.division import Division
from runtime.modules.layers import Layer
from runtime.modules.weights.digests import buffers_of, parameters_of, sampled
from runtime.modules.weights.ties import Layers, State, Ties
from runtime.transport.protocol import Transport

Digests = tuple[str | None, ...]
"""Of layers; `None` says nothing."""


_Place = tuple[int, str]
"""A layer, by its index in the model, and the name of a tensor in it."""


class DifferentWeightsError(AgreementError):
    """Processes have different weights where they are to have the same."""


@dataclass(frozen=True)
class WeightsToken:
    """What a rank says of its weights when an evaluation starts."""

    division: Division | None = None
    """How the rank has divided the layers."""
    ties: State = field(default_factory=dict)
    built: Digests = ()
    """Of all layers as this process built them; of its own only while they are as they were."""
    own: Sequence[Mapping[str, str | None]] = ()
    """Of this rank's layers as they are, where there are replicas: of all parameters, under an
    empty name, and of each persistent buffer; `None`: forwards write to it."""


def digests_of(layers: Sequence[Layer], without: Sequence[Collection[str]]) -> Digests:
    """Digests of the modules among layers, without parameters of the given names of each."""
    found = []
    for layer, names in zip(layers, without, strict=True):
        parameters = (
            parameters_of(layer) | buffers_of(layer) if isinstance(layer, nn.Module) else {}
        )
        found.append(sampled({n: p for n, p in parameters.items() if n not in names}))
    return tuple(found)


class RankWeights:
    """The weights of one rank over its evaluations."""

    def __init__(
        self,
        layers: Layers,
        division: Division,
        transport: Transport,
        ties: Ties,
        built: Digests | None,
    ) -> None:
        """Nothing has been compared yet.

        Args:
            layers: Those of this rank.
            division: How all layers are divided.
            transport: Connection to the other ranks.
            ties: Of this rank.
            built: All layers as this process built them; `None`: nothing but ties is compared.
        """
        self._layers, self._division, self._transport = layers, division, transport
        self._ties, self._checked = ties, built is not None
        self._built = built if transport.ranks > 1 and any(built or ()) else None
        self._before: dict[_Place, tuple[int, int]] = {}
        self._written: set[_Place] = set()
        """Buffers that forwards write to."""
        self.token = WeightsToken()
        """What this rank says of its weights, inside `evaluation`."""

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An evaluation, to be entered before the stage is put into evaluation mode."""
        replicated = self._checked and self._transport.replicas > 1
        self.token = WeightsToken(
            division=self._division,
            ties=self._ties.state(self._layers, self._written) if self._ties else {},
            built=() if self._built is None else self._as_built(self._built),
            own=self._own() if replicated else (),
        )
        self._before = {}
        try:
            yield
        finally:
            before, now = self._before, self._buffers() if self._before else {}
            self._written |= {place for place in before if before[place] != now.get(place)}

    def settle(self, gathered: Sequence[Sequence[WeightsToken]]) -> None:
        """Compare what all processes say; all of them have to call this.

        Args:
            gathered: By replica and rank.

        Raises:
            DifferentWeightsError: layers or replicas differ.
            AgreementError: the stages have divided the layers in different ways, or tied weights
                differ in a way that cannot be mended.
        """
        tokens = gathered[self._transport.replica]
        require_same("partition of the layers", [token.division for token in tokens])
        require_same_replicas(gathered, self._division)
        require_built_alike(gathered, self._division)
        self._built = None
        if self._ties:
            self._ties.hold(self._layers, [token.ties for token in tokens], self._transport)
        if self._ties or self.token.own:
            self._before = self._buffers()

    def hold_ties(self) -> None:
        """Make tied weights equal on all stages, which have to call this together.

        Raises:
            TieError, AgreementError: they cannot be.
        """
        if self._ties:
            own = self._ties.state(self._layers, self._written)
            self._ties.hold(self._layers, self._transport.gather_objects(own), self._transport)

    def _own(self) -> list[dict[str, str | None]]:
        found: list[dict[str, str | None]] = []
        for index, layer in self._layers.items():
            found.append({"": sampled(parameters_of(layer))})
            for name, buffer in buffers_of(layer).items():
                written = (index, name) in self._written
                found[-1][name] = None if written else sampled({name: buffer})
        return found

    def _as_built(self, built: Digests) -> Digests:
        digests = list(built)
        names = [self._ties.names[index] for index in self._layers]
        now = digests_of(list(self._layers.values()), names)
        for index, digest in zip(self._layers, now, strict=True):
            if digest != built[index]:
                digests[index] = None
        return tuple(digests)

    def _buffers(self) -> dict[_Place, tuple[int, int]]:
        """Which memory each buffer has, and how often it was written to."""
        return {
            (index, name): (buffer.data_ptr(), _version(buffer))
            for index, layer in self._layers.items()
            for name, buffer in layer.named_buffers(remove_duplicate=False)
            if not is_lazy(buffer) and buffer.layout is torch.strided
        }


def require_same_replicas(gathered: Sequence[Sequence[WeightsToken]], division: Division) -> None:
    """Compare the layers of each rank over the replicas.

    Raises:
        DifferentWeightsError: naming the first layer that differs, and the replicas.
    """
    for rank in range(division.ranks):
        expected, name = gathered[0][rank].own, division.name(rank)
        for replica, tokens in enumerate(gathered):
            found = tokens[rank].own
            layers = division.layers_of(rank)
            for index, one, other in zip(layers, expected, found, strict=False):
                pairs = [(one[name], other[name]) for name in one.keys() & other.keys()]
                if any(None not in pair and pair[0] != pair[1] for pair in pairs):
                    raise DifferentWeightsError(
                        f"layer {index} has other weights on {name} of replica {replica} than on "
                        f"{name} of replica 0, needed the same in all replicas "
                        "(check_weights=False leaves this comparison out)"
                    )


def require_built_alike(gathered: Sequence[Sequence[WeightsToken]], division: Division) -> None:
    """Compare the layers that run with the other processes' copies of them.

    Raises:
        DifferentWeightsError: naming the first layer that differs, and the processes.
    """
    processes = [(r, rank) for r, tokens in enumerate(gathered) for rank in range(len(tokens))]
    for index in range(division.layers):
        owner = division.rank_of(index)
        expected = _built(gathered[0][owner], index)
        for replica, rank in processes:
            found = _built(gathered[replica][rank], index)
            if None not in (expected, found) and found != expected:
                of = f" of replica {replica}" if len(gathered) > 1 else ""
                raise DifferentWeightsError(
                    f"layer {index} runs on {division.name(owner)}, and {division.name(rank)}{of} "
                    "has built it with other weights: needed the same layers on every process, so "
                    "the same seed, or weights that are loaded (check_weights=False leaves this "
                    "comparison out)"
                )


def _built(token: WeightsToken, layer: int) -> str | None:
    return token.built[layer] if layer < len(token.built) else None


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
