"""What a rank reads of the data of an evaluation."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch

from runtime.data.items import ItemReader, Reading
from runtime.data.micro_batches import Prefetcher
from runtime.data.route import Route
from runtime.device import OwnRandomState
from runtime.evaluation.setup import Setup
from runtime.execution.buffers import BufferPool
from runtime.outputs.options import EvalOptions


def prefetcher_of(
    data: Iterable[Any] | None,
    options: EvalOptions,
    asked: int | None,
    setup: Setup,
    route: Route,
    buffers: BufferPool,
    device: torch.device,
    check: Callable[[], None],
) -> Prefetcher | None:
    """What fetches a rank's micro-batches, if it reads any.

    Args:
        data: Where they come from.
        options: What is wanted of them.
        asked: The number of them; `None`: all that there are.
        setup: Of the rank's evaluator.
        route: What the rank has to do with the stream of data.
        buffers: Where copies may lie.
        device: Where they go.
        check: Raises if the run has failed elsewhere.
    """
    labels = route.reads_labels and options.needs_labels
    # A last stage that needs no labels now still goes on in step with the first.
    if not (route.reads_inputs or labels or (route.reads_labels and data is not None)):
        return None
    reading = Reading(
        inputs=route.reads_inputs,
        labels=labels,
        fingerprints=setup.compares_data,
        keyword_inputs=setup.keyword_inputs,
    )
    return Prefetcher(
        data,
        ItemReader(reading, device, setup.division.name(route.rank), buffers.small.take),
        most=asked,
        ahead=setup.fetching.prefetch,
        around=OwnRandomState(device) if asked is None else nullcontext,
        check=check,
        in_thread=setup.fetching.needs_thread(data, device),
    )
