"""Building: the layers of a stage, as one process would have built them.

Factories of `LayerSpec`s draw random numbers, and one process that builds the whole list draws them
layer by layer. So stages draw in turn: each goes on with the state of torch's generators that the
stage before left. For the same seed, the model is then the same for any number of stages, and no
stage builds a layer of another. A stage waits for its turn when it draws for the first time: layers
that are read from disk, or made on the meta device, are built by all stages at once. All replicas
begin with the state of the first.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar
from uuid import uuid4

import torch

from runtime.device import random_state, restore_random_state
from runtime.failure.guard import Guard
from runtime.modules.layers import Layer, LayerSpec, StageModule
from runtime.modules.operations import Operations
from runtime.modules.ties import Ties
from runtime.transport.protocol import Transport

RandomState = list[torch.Tensor]
Built = TypeVar("Built")

_PROCESS = uuid4().hex
_ONE_AT_A_TIME = threading.Lock()
"""For stages that are threads of one process and share its generators."""


def build_with_ties(
    layers: Sequence[Layer],
    ties: Ties,
    transport: Transport,
    guard: Guard,
    build: Callable[[], StageModule],
) -> StageModule:
    """Build this stage, with the tied weights of the first stage that has them.

    Without ties between stages and without specifications nothing is communicated; with them, all
    ranks have to call this.

    Args:
        layers: All layers, the same on every process.
        ties: Between the stages.
        transport: Connection to the other stages.
        guard: Tells them of a stage that cannot be built.
        build: Makes the layers of this stage, on its device.

    Raises:
        RemoteError: another stage could not be built.
        AgreementError: tied weights have different shapes or dtypes.
    """
    alone = transport.stages * transport.replicas == 1
    in_turn = not alone and any(isinstance(layer, LayerSpec) for layer in layers)
    if not ties and not in_turn:
        return build()
    with guard.run("the making") as run:
        what = "tied layers" if ties else "layers"
        run.phase(f"the building of {what}", waits_for="", patient=True)
        stage = built_in_turn(build, transport) if in_turn else build()
        if ties:
            run.phase("the handing over of tied weights")
            ties.hold(stage, transport.gather_objects(ties.state(stage)), transport)
    return stage


def built_in_turn(build: Callable[[], Built], transport: Transport) -> Built:
    """What `build` makes when all stages draw from torch's generators one after the other.

    The generators end as on one process, if they began as those of the first stage; else as they
    began.
    """
    turns = _Turns(transport)
    if turns.one_generator:
        state = turns.wait()
        with _ONE_AT_A_TIME:
            restore_random_state(state, transport.device)
            built = build()
            now = random_state(transport.device)
        turns.end(now)
    else:
        with _FirstDraw(turns, transport.device):
            built = build()
        now = random_state(transport.device)
        turns.end(None if _same(now, turns.own) else now)
    state = turns.last()
    with _ONE_AT_A_TIME if turns.one_generator else nullcontext():
        began_alike = _same(turns.own, turns.first)
        restore_random_state(state if began_alike else turns.own, transport.device)
    return built


class _Turns:
    """The states of the generators, handed on from stage to stage."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.own = random_state(transport.device)
        """How this process began."""
        pipeline = transport.gather_objects((_PROCESS, self.own))
        gathered = transport.gather_from_replicas(pipeline)
        processes = [process for stages in gathered for process, _ in stages]
        self.one_generator = len(set(processes)) < len(processes)
        self.first: RandomState = gathered[0][0][1]
        """How the first stage began."""
        self._state: RandomState = self.first
        self._turn = 0

    def wait(self) -> RandomState:
        """The state with which this stage begins to draw."""
        self._until(self._transport.stage_id, None)
        return self._state

    def end(self, state: RandomState | None) -> None:
        """This stage has been built; `None`: it has not drawn."""
        self._until(self._transport.stage_id, None)
        self._until(self._transport.stage_id + 1, state)

    def last(self) -> RandomState:
        """The state that the last stage left."""
        self._until(self._transport.stages, None)
        return self._state

    def _until(self, stage: int, state: RandomState | None) -> None:
        while self._turn < stage:
            sent = self._transport.gather_objects(state)[self._turn]
            self._state = self._state if sent is None else sent
            self._turn += 1


class _FirstDraw(Operations):  # type: ignore[no-untyped-call]
    """Waits for the turn before the first random number is drawn."""

    def __init__(self, turns: _Turns, device: torch.device) -> None:
        super().__init__()
        self._turns, self._device = turns, device

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
            turn = self._turns.wait()
            parts = zip(now, self._turns.own, turn, strict=True)
            state = [t if torch.equal(n, own) else n for n, own, t in parts]
            restore_random_state(state, self._device)


def _same(one: RandomState, other: RandomState) -> bool:
    return all(map(torch.equal, one, other))
