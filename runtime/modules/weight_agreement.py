"""Weights: what processes make sure of before an evaluation, beside the data.

- *Ties* hold, see `runtime.modules.ties`.
- *Replicas* evaluate one model: parameters and persistent buffers of a stage are the same in all.
- *Layers that every process has built* (modules of the list) have the same parameters: where each
  process draws its own, the stages together are a model that nobody has made. Layers that have
  changed since, because weights were loaded, are not compared.

For the last two, samples are compared (see `runtime.modules.digests`): cheap, and enough to tell
apart weights that were drawn or loaded differently. What forwards write to, such as a counter, is a
state of the layer, and not compared any more.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from runtime.failure.errors import AgreementError
from runtime.modules.digests import buffers_of, parameters_of, sampled
from runtime.modules.layers import Layer
from runtime.modules.ties import State, Ties
from runtime.planning.handshake import require_same
from runtime.transport.protocol import Transport

Digests = tuple[str | None, ...]
"""Of layers; `None` says nothing."""


_Place = tuple[int, str]
"""A layer of the stage, and the name of a tensor in it."""


class DifferentWeightsError(AgreementError):
    """Processes have different weights where they are to have the same."""


@dataclass(frozen=True)
class WeightsToken:
    """What a stage says of its weights when an evaluation starts."""

    boundaries: tuple[int, ...] = ()
    """How the stage has divided the layers."""
    ties: State = field(default_factory=dict)
    built: Digests = ()
    """Of all layers as this process built them; of its own only while they are as they were."""
    own: Sequence[Mapping[str, str | None]] = ()
    """Of this stage's layers as they are, where there are replicas: of all parameters, under an
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


class StageWeights:
    """The weights of one stage over its evaluations."""

    def __init__(
        self,
        stage: nn.Sequential,
        boundaries: Sequence[int],
        transport: Transport,
        ties: Ties,
        built: Digests | None,
    ) -> None:
        """Nothing has been compared yet.

        Args:
            stage: The layers of this stage.
            boundaries: How all layers are divided.
            transport: Connection to the other stages.
            ties: Of this stage.
            built: All layers as this process built them; `None`: nothing but ties is compared.
        """
        self._stage, self._boundaries, self._transport = stage, tuple(boundaries), transport
        self._ties, self._checked = ties, built is not None
        self._built = built if transport.stages > 1 and any(built or ()) else None
        self._before: dict[_Place, tuple[int, int]] = {}
        self._written: set[_Place] = set()
        """Buffers that forwards write to."""
        self.token = WeightsToken()
        """What this stage says of its weights, inside `evaluation`."""

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An evaluation, to be entered before the stage is put into evaluation mode."""
        replicated = self._checked and self._transport.replicas > 1
        self.token = WeightsToken(
            boundaries=self._boundaries,
            ties=self._ties.state(self._stage, self._written) if self._ties else {},
            built=() if self._built is None else self._as_built(self._built),
            own=self._own() if replicated else (),
        )
        self._before = {}
        try:
            yield
        finally:
            before, now = self._before, self._buffers() if self._before else {}
            self._written |= {place for place in before if before[place] != now.get(place)}

    def settle(self, everyone: Sequence[Sequence[WeightsToken]]) -> None:
        """Compare what all processes say; all of them have to call this.

        Args:
            everyone: By replica and stage.

        Raises:
            DifferentWeightsError: layers or replicas differ.
            AgreementError: the stages have divided the layers in different ways, or tied weights
                differ in a way that cannot be mended.
        """
        tokens = everyone[self._transport.replica]
        require_same("partition of the layers", [token.boundaries for token in tokens])
        require_same_replicas(everyone, self._boundaries)
        require_built_alike(everyone, self._boundaries)
        self._built = None
        if self._ties:
            self._ties.hold(self._stage, [token.ties for token in tokens], self._transport)
        if self._ties or self.token.own:
            self._before = self._buffers()

    def hold_ties(self) -> None:
        """Make tied weights equal on all stages, which have to call this together.

        Raises:
            TieError, AgreementError: they cannot be.
        """
        if self._ties:
            mine = self._ties.state(self._stage, self._written)
            self._ties.hold(self._stage, self._transport.gather_objects(mine), self._transport)

    def _own(self) -> list[dict[str, str | None]]:
        found: list[dict[str, str | None]] = []
        for index, layer in enumerate(self._stage):
            found.append({"": sampled(parameters_of(layer))})
            for name, buffer in buffers_of(layer).items():
                written = (index, name) in self._written
                found[-1][name] = None if written else sampled({name: buffer})
        return found

    def _as_built(self, built: Digests) -> Digests:
        digests = list(built)
        first, stop = self._boundaries[self._transport.stage_id :][:2]
        now = digests_of(list(self._stage), self._ties.names[first:stop])
        for index, digest in enumerate(now, start=first):
            if digest != built[index]:
                digests[index] = None
        return tuple(digests)

    def _buffers(self) -> dict[_Place, tuple[int, int]]:
        """Which memory each buffer has, and how often it was written to."""
        return {
            (index, name): (buffer.data_ptr(), _version(buffer))
            for index, layer in enumerate(self._stage)
            for name, buffer in layer.named_buffers(remove_duplicate=False)
            if not is_lazy(buffer) and buffer.layout is torch.strided
        }


def require_same_replicas(
    everyone: Sequence[Sequence[WeightsToken]], boundaries: Sequence[int]
) -> None:
    """Compare the layers of each stage over the replicas.

    Raises:
        DifferentWeightsError: naming the first layer that differs, and the replicas.
    """
    for stage_id, first_layer in enumerate(boundaries[:-1]):
        expected = everyone[0][stage_id].own
        for replica, tokens in enumerate(everyone):
            found = tokens[stage_id].own
            for index, (one, other) in enumerate(zip(expected, found, strict=False)):
                said = [(one[name], other[name]) for name in one.keys() & other.keys()]
                if any(None not in pair and pair[0] != pair[1] for pair in said):
                    raise DifferentWeightsError(
                        f"layer {first_layer + index} has other weights on stage {stage_id} of "
                        f"replica {replica} than on stage {stage_id} of replica 0, needed the same "
                        "in all replicas (check_weights=False leaves this comparison out)"
                    )


def require_built_alike(
    everyone: Sequence[Sequence[WeightsToken]], boundaries: Sequence[int]
) -> None:
    """Compare the layers that run with the other processes' copies of them.

    Raises:
        DifferentWeightsError: naming the first layer that differs, and the processes.
    """
    places = [(r, stage) for r, tokens in enumerate(everyone) for stage in range(len(tokens))]
    for owner, (first, stop) in enumerate(pairwise(boundaries)):
        for index in range(first, stop):
            expected = _built(everyone[0][owner], index)
            for replica, stage in places:
                found = _built(everyone[replica][stage], index)
                if None not in (expected, found) and found != expected:
                    of = f" of replica {replica}" if len(everyone) > 1 else ""
                    raise DifferentWeightsError(
                        f"layer {index} runs on stage {owner}, and stage {stage}{of} has built it "
                        "with other weights: needed the same layers on every process, so the same "
                        "seed, or weights that are loaded (check_weights=False leaves this "
                        "comparison out)"
                    )


def _built(token: WeightsToken, layer: int) -> str | None:
    return token.built[layer] if layer < len(token.built) else None


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
