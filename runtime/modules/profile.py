"""Profile: how long the forward of each layer takes, to divide layers by it.

Layers that exist already are copied first: they may count their calls, or keep something.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from runtime.device import Clock, random_state_kept
from runtime.failure.guard import Guard
from runtime.modules.layers import Layer, build_stage
from runtime.modules.modes import evaluating
from runtime.modules.partition import PartitionError
from runtime.transport.protocol import Transport

REPEATS = 3
"""Forwards of each layer that are timed; the shortest counts, what else took time being noise."""


def agreed_profile(
    layers: nn.Sequential | Sequence[Layer],
    transport: Transport,
    guard: Guard,
    sample_inputs: Any,
    *,
    keyword_inputs: bool,
) -> list[float]:
    """Measure on the first stage of the first replica; every process gets the same numbers.

    Args:
        layers: All layers.
        transport: Connects all processes, which have to call this together.
        guard: Tells all of them of a layer that fails.
        sample_inputs: Inputs of a typical micro-batch, on that stage; ignored on others.
        keyword_inputs: Whether they are keyword arguments.

    Raises:
        PartitionError: there is no sample.
        RemoteError: a layer failed there.
    """
    own: list[float] | PartitionError | None = None
    with guard.run("the making") as run:
        if transport.rank == 0 and transport.replica == 0:
            run.phase("the profile of the layers", waits_for="", patient=True)
            try:
                own = profile(
                    layers, sample_inputs, transport.device, keyword_inputs=keyword_inputs
                )
            except PartitionError as error:
                own = error
        run.phase("the exchange of the profile")
        # Along the first replica, then from each of its stages to the same stage of the others.
        of_replica = transport.gather_objects(own)[0]
        found = transport.gather_from_replicas(of_replica)[0]
    if isinstance(found, PartitionError):
        raise found
    seconds: list[float] = found
    return seconds


def profile(
    layers: nn.Sequential | Sequence[Layer],
    sample_inputs: Any,
    device: torch.device,
    *,
    keyword_inputs: bool = False,
) -> list[float]:
    """The seconds of each layer's forward on `device`, one layer being there at a time.

    Raises:
        PartitionError: there is no sample, or a layer cannot be copied.
    """
    if sample_inputs is None:
        raise PartitionError(
            "partition is 'profile', needed sample_inputs on the first stage to measure with"
        )
    clock = Clock(device)
    value = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), sample_inputs)
    entries = list(layers)
    seconds = []
    with random_state_kept(device):
        for index, entry in enumerate(entries):
            entries[index] = _copied(index, entry) if isinstance(entry, nn.Module) else entry
            layer = build_stage(entries, index, index + 1, keyword_inputs=keyword_inputs)
            entries[index] = entry  # one copy is in memory at a time
            layer.to(device)
            with evaluating(layer):
                took, value = _measure(layer, value, clock)
            seconds.append(took)
    return seconds


def _copied(index: int, layer: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(layer)
    except Exception as error:
        raise PartitionError(
            f"layer {index} of type {type(layer).__name__} cannot be copied ({error}), needed to "
            "measure it without changing it: needed another partition than 'profile'"
        ) from error


def _measure(layer: nn.Module, value: Any, clock: Clock) -> tuple[float, Any]:
    """Seconds of one forward, and its output. The first one only warms up."""
    best, output = float("inf"), None
    for repeat in range(REPEATS + 1):
        inputs = pytree.tree_map_only(torch.Tensor, torch.clone, value)  # it may work in place
        start = clock.mark()
        output = layer(inputs)
        end = clock.mark()
        clock.synchronize()
        if repeat > 0:
            best = min(best, clock.seconds(start, end))
    return best, output
