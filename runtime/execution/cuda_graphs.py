"""CUDA graphs of a stage: its forward captured once for each kind of inputs, and then replayed.

A forward of many small kernels is bound by the host, which launches them one by one. A graph
launches all of them in one call (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
It reads its inputs where they were when it was captured, and writes its outputs to the same memory
each time. So inputs are copied into memory of the graph, and outputs out of it.

Graphs live for one evaluation: weights that are replaced between two evaluations, hooks that are
added, and switches of torch that are turned are never missed. Inside an evaluation, what the layers
do in Python (hooks, counters, conditions on values) is done for the first two micro-batches of each
kind only.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from runtime.device import DeviceError
from runtime.tensors.activation import special
from runtime.tensors.nested import Nesting, flatten, unflatten
from runtime.tensors.ownership import copied

MOST = 16
"""Kinds of inputs that are captured; each graph keeps memory for all that its forward computes."""


class CudaGraphError(RuntimeError):
    """The layers of a stage cannot be captured."""


def require_gpu(device: torch.device) -> None:
    """Make sure that there is something to capture on.

    Raises:
        DeviceError: the device is no GPU.
    """
    if device.type != "cuda":
        raise DeviceError(f"cuda_graphs is True, but the device is {device}, needed a GPU")


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Do it again, on the device's current stream."""


Capture = Callable[[Callable[[], Any]], tuple[Any, Graph]]
"""`function -> (what it returned, which each replay fills anew, the graph)`."""


def capture_on(device: torch.device) -> Capture:
    """Capture what a function does on a GPU, without waiting for the device.

    `torch.cuda.graph` would synchronise with it first: there a receive may wait for a message that
    comes late, or never. The device does nothing while a function is captured; only a replay does.
    """

    def capture(function: Callable[[], Any]) -> tuple[Any, Graph]:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads use the device meanwhile: to load data, and to watch over it.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                found = function()
            finally:
                graph.capture_end()
        return found, graph

    return capture


class _Captured(NamedTuple):
    inputs: list[torch.Tensor]
    output: Any
    graph: Graph


class GraphedLayers(nn.Module):
    """The layers of a stage, replayed wherever inputs look as others did before.

    Inputs look alike if they are nested alike, their tensors have the same shapes, strides and
    types, and all else in them is equal. The first of a kind go through the layers as ever, which
    also sets up what is captured with the second.
    """

    def __init__(
        self, stage: int, layers: nn.Module, device: torch.device, capture: Capture
    ) -> None:
        """Capture `layers`, which are those of `stage` on `device`, with `capture`."""
        super().__init__()
        self.layers, self._stage, self._device, self._capture = layers, stage, device, capture
        self._captured: dict[Hashable, _Captured | None] = {}
        """By the look of the inputs; `None`: they came once."""

    def forward(self, inputs: Any) -> Any:
        """What the layers return, in memory that nobody else refers to.

        Raises:
            CudaGraphError: they cannot be captured.
        """
        leaves, nesting = flatten(inputs)
        look = self._look(leaves, nesting)
        if look is None or (look not in self._captured and len(self._captured) == MOST):
            return self.layers(inputs)
        if look not in self._captured:
            self._captured[look] = None
            return self.layers(inputs)
        captured = self._captured[look]
        if captured is None:
            captured = self._captured[look] = self._capture_for(leaves, nesting)
        for place, tensor in zip(captured.inputs, _tensors(leaves), strict=True):
            place.copy_(tensor)
        captured.graph.replay()
        return _copy(captured.output)

    def _capture_for(self, leaves: list[Any], nesting: Nesting) -> _Captured:
        places = [_place(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        inputs = unflatten(places, nesting)
        try:
            output, graph = self._capture(lambda: self.layers(inputs))
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise CudaGraphError(
                f"the layers of stage {self._stage} cannot be captured into a CUDA graph: {text} "
                "(layers that look at values on the host cannot; needed cuda_graphs=False)"
            ) from error
        return _Captured(_tensors(places), output, graph)

    def _look(self, leaves: list[Any], nesting: Nesting) -> Hashable | None:
        """What two inputs have in common that one graph serves; `None`: none serves them."""
        look: list[Hashable] = [str(nesting)]
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                if special(leaf) or leaf.device != self._device:
                    return None
                look.append((leaf.shape, leaf.stride(), leaf.dtype))
            elif leaf is None or isinstance(leaf, (bool, int, float, str)):
                look.append((type(leaf), leaf))
            else:
                return None
        return tuple(look)


def _place(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def _tensors(leaves: list[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _copy(output: Any) -> Any:
    """The output, its tensors copied as they lie in memory."""
    leaves, nesting = flatten(output)
    copies = iter(copied(_tensors(leaves)))
    return unflatten(
        [next(copies) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], nesting
    )
