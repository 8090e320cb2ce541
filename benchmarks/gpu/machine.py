"""The machine that is asked: one GPU or more; in a dry run the CPU, with stand-ins for streams."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from runtime.execution.cuda_graphs import Graph, capture_on

CYCLES = 1.7e9
"""Of a multiprocessor's clock in a second, about."""


class DryStream:
    """Where nothing runs beside the host, a stream has always done its work."""

    def wait_event(self, event: Any) -> None:
        """It has happened."""

    def wait_stream(self, stream: Any) -> None:
        """It has done its work."""

    def record_event(self) -> "DryStream":
        """An event that has happened."""
        return self

    def synchronize(self) -> None:
        """There is nothing to wait for."""


class DryGraph:
    """A captured function, which is called again."""

    def __init__(self, function: Callable[[], Any], output: torch.Tensor) -> None:
        """Take what is captured, and where its output is to be."""
        self._function, self._output = function, output

    def replay(self) -> None:
        """Do it once more."""
        self._output.copy_(self._function())


@dataclass(frozen=True)
class Machine:
    """What rows of the table ask of a device."""

    dry: bool = False
    index: int = 0
    """Of the GPU."""

    @property
    def device(self) -> torch.device:
        """The GPU, or in a dry run the CPU."""
        return torch.device("cpu") if self.dry else torch.device("cuda", self.index)

    def busy(self, seconds: float) -> None:
        """Keep the current stream busy for about that long."""
        if self.dry:
            time.sleep(min(seconds, 1e-4))
        else:
            torch.cuda._sleep(int(seconds * CYCLES))  # type: ignore[no-untyped-call]

    def poison(self, nbytes: int) -> None:
        """Fill memory that is free with NaN: what reads it too early or too late will show."""
        torch.full((nbytes // 4,), float("nan"), device=self.device)

    def stream(self) -> Any:
        """A stream of its own."""
        return DryStream() if self.dry else torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def current_stream(self) -> Any:
        """That of this thread."""
        return DryStream() if self.dry else torch.cuda.current_stream(self.device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Inside, `stream` is the current one."""
        return nullcontext() if self.dry else torch.cuda.stream(stream)

    def used_on(self, tensor: torch.Tensor, stream: Any) -> None:
        """Tell the allocator that `stream` uses the memory."""
        if not self.dry:
            tensor.record_stream(stream)

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Graph]:
        """A graph of what `function` does, see `runtime.execution.cuda_graphs.Capture`."""
        if self.dry:
            output = function()
            return output, DryGraph(function, output)
        return capture_on(self.device)(function)

    def synchronize(self) -> None:
        """Wait for all its work."""
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def reserved(self) -> int:
        """The most bytes that the allocator has held since `forget_reserved`."""
        return 0 if self.dry else torch.cuda.max_memory_reserved(self.device)

    def forget_reserved(self) -> None:
        """Hand free memory back, and count anew."""
        if not self.dry:
            self.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def seconds(self, function: Callable[[], object], times: int = 1) -> float:
        """Seconds of one call on the device, of `times` in a row."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            function()
        self.synchronize()
        return (time.perf_counter() - start) / times
