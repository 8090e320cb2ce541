"""Building: the layers of a stage, as one process would have built them.

Factories of `LayerSpec`s draw random numbers, and one process that builds the whole list draws them
layer by layer. So stages draw in turn: each goes on with the state of torch's generators that the
stage before left. For the same seed, the model is then the same for any number of stages, and no
rank builds a layer of another. A stage waits for its turn when it draws for the first time: layers
that are read from disk, or made on the meta device, are built by all stages at once. All replicas
begin with the state of the first.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar
from uuid import uuid4

import torch
from torch import nn

from runtime.device import random_state, restore_random_state
from runtime.failure.guard import Guard
from runtime.modules.division import Division
from runtime.modules.layers import Layer, LayerSpec, StageModule
from runtime.modules.operations import Operations
from runtime.modules.weights.ties import Ties
from runtime.transport.protocol import Transport

RandomState = list[torch.Tensor]
Built = TypeVar("Built")

_PROGRAM = uuid4().hex
"""Of this process, and of those that are forked off it."""
_ONE_AT_A_TIME = threading.Lock()
"""For stages that are threads of one process and share its generators."""


def build_with_ties(
    layers: Sequence[Layer],
    ties: Ties,
    division: Division,
    transport: Transport,
    guard: Guard,
    build: Callable[[int], StageModule],
) -> dict[int, StageModule]:
    """Build this rank's stages, with the tied weights of the first stage that has them.

    Without ties between ranks and without specifications nothing is communicated; with them, all
    ranks have to call this.

    Args:
        layers: All layers, the same on every process.
        ties: Between the ranks.
        division: How the layers are divided.
        transport: Connection to the other ranks.
        guard: Tells them of a stage that cannot be built.
        build: Makes the layers of a stage, on the rank's device.

    Raises:
        RemoteError: another stage could not be built.
        AgreementError: tied weights have different shapes or dtypes.
    """
    alone = transport.ranks * transport.replicas == 1
    in_turn = not alone and any(isinstance(layer, LayerSpec) for layer in layers)
    own = division.stages_of(transport.rank)
    if not ties and not in_turn:
        return {stage: build(stage) for stage in own}
    with guard.run("the making") as run:
        what = "tied layers" if ties else "layers"
        run.phase(f"the building of {what}", waits_for="", patient=True)
        if in_turn:
            stages = built_in_turn(build, own, division.placement, transport)
        else:
            stages = {stage: build(stage) for stage in own}
        if ties:
            run.phase("the handing over of tied weights")
            held = layers_of(stages, division)
            ties.hold(held, transport.gather_objects(ties.state(held)), transport)
    return stages


def layers_of(stages: Mapping[int, StageModule], division: Division) -> dict[int, nn.Module]:
    """The layers of stages, by their index in the model."""
    return {
        index: layer
        for stage, module in stages.items()
        for index, layer in zip(division.layers_of_stage(stage), module, strict=True)
    }


def built_in_turn(
    build: Callable[[int], Built],
    own: Sequence[int],
    placement: Sequence[int],
    transport: Transport,
) -> dict[int, Built]:
    """What `build` makes when all stages draw from torch's generators one after the other.

    The generators end as on one process, if they began as those of the first rank; else as they
    began.

    Args:
        build: Makes a stage.
        own: The stages to make here.
        placement: The rank of each stage.
        transport: Connection to the other ranks.
    """
    turns, device = _Turns(placement, transport), transport.device
    built: dict[int, Built] = {}
    for stage in own:
        if turns.one_generator:
            state = turns.wait(stage)
            with _ONE_AT_A_TIME:
                restore_random_state(state, device)
                built[stage] = build(stage)
                now = random_state(device)
            turns.end(stage, now)
        else:
            restore_random_state(turns.own, device)
            with _FirstDraw(turns, stage, device):
                built[stage] = build(stage)
            now = random_state(device)
            turns.end(stage, None if _same(now, turns.own) else now)
    state = turns.last()
    with _ONE_AT_A_TIME if turns.one_generator else nullcontext():
        began_alike = _same(turns.own, turns.first)
        restore_random_state(state if began_alike else turns.own, device)
    return built


class _Turns:
    """The states of the generators, handed on from stage to stage."""

    def __init__(self, placement: Sequence[int], transport: Transport) -> None:
        self._placement, self._transport = placement, transport
        self.own = random_state(transport.device)
        """How this process began."""
        pipeline = transport.gather_objects(((_PROGRAM, os.getpid()), self.own))
        gathered = transport.gather_from_replicas(pipeline)
        processes = [process for ranks in gathered for process, _ in ranks]
        self.one_generator = len(set(processes)) < len(processes)
        self.first: RandomState = gathered[0][placement[0]][1]
        """How the rank of the first stage began."""
        self._state: RandomState = self.first
        self._turn = 0

    def wait(self, stage: int) -> RandomState:
        """The state with which a stage begins to draw."""
        self._until(stage, None)
        return self._state

    def end(self, stage: int, state: RandomState | None) -> None:
        """A stage has been built here; `None`: it has not drawn."""
        self._until(stage, None)
        self._until(stage + 1, state)

    def last(self) -> RandomState:
        """The state that the last stage left."""
        self._until(len(self._placement), None)
        return self._state

    def _until(self, stage: int, state: RandomState | None) -> None:
        while self._turn < stage:
            sent = self._transport.gather_objects(state)[self._placement[self._turn]]
            self._state = self._state if sent is None else sent
            self._turn += 1


class _FirstDraw(Operations):  # type: ignore[no-untyped-call]
    """Waits for the turn before the first random number is drawn."""

    def __init__(self, turns: _Turns, stage: int, device: torch.device) -> None:
        super().__init__()
        self._turns, self._stage, self._device = turns, stage, device

    def before(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See whether the operation draws."""
        draws = torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())
        if draws and kwargs.get("generator") is None:
            tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
            on = kwargs.get("device") if tensor is None else tensor.device
            if on is None or torch.device(on).type != "meta":
                self._begin()

    def _begin(self) -> None:
        """Go on from the turn's state, unless the factory has set a seed, or has drawn already."""
        now = random_state(self._device)
        if any(map(torch.equal, now, self._turns.own)):
            turn = self._turns.wait(self._stage)
            parts = zip(now, self._turns.own, turn, strict=True)
            state = [t if torch.equal(n, own) else n for n, own, t in parts]
            restore_random_state(state, self._device)


def _same(one: RandomState, other: RandomState) -> bool:
    return all(map(torch.equal, one, other))
