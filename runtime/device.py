"""The device question, in one place: which device, and how time passes on it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

import torch

Mark: TypeAlias = "float | torch.cuda.Event"
"""A point in time on a device's own stream of work."""


POLL_SECONDS = 0.0005
"""Between two looks at a device that has not got there yet."""


class DeviceError(ValueError):
    """There is no such device on this machine."""


class Clock:
    """Tells the time of a device: the host's for a CPU, that of its current stream for a GPU."""

    def __init__(self, device: torch.device) -> None:
        """A clock of `device`."""
        self._device = device
        self.on_gpu = device.type == "cuda"
        """Whether time passes on a device that the host only sends work to."""

    def mark(self) -> Mark:
        """Now; on a GPU, when the work enqueued so far will be done."""
        if not self.on_gpu:
            return time.perf_counter()
        # The current device is another one, unless somebody has set it: name the stream's.
        stream = torch.cuda.current_stream(self._device)
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def reached(self, mark: Mark) -> bool:
        """Whether the device has come to `mark`."""
        return isinstance(mark, float) or bool(mark.query())  # type: ignore[no-untyped-call]

    def seconds(self, start: Mark, end: Mark) -> float:
        """Seconds from one mark to another, both reached."""
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1e3

    def wait(self, check: Callable[[], None], mark: "Mark | None" = None) -> None:
        """Wait on the host until the device has come to a mark.

        A host that blocks in the device (`synchronize`, `cpu`, a copy from pageable memory) could
        not be told of a failure, for which a receive on the device may wait in vain.

        Args:
            check: Called meanwhile, and at the end; raises if what the device has may be anything.
            mark: Default: now, behind all that the device's current stream was given.
        """
        until = self.mark() if mark is None else mark
        while not self.reached(until):
            check()
            time.sleep(POLL_SECONDS)
        check()

    def download(self, tensor: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        """A tensor of the device in the host's memory; of a CPU, that tensor itself.

        Args:
            tensor: Filled by what the current stream was given.
            check: As of `wait`.
        """
        if not self.on_gpu:
            return tensor
        host = _pinned(tensor.shape, tensor.dtype)
        host.copy_(tensor, non_blocking=True)
        self.wait(check)
        return host

    def upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device; the host does not wait.

        Without pinned memory and `non_blocking`, torch waits until the current stream has come to
        the copy, behind the receives that are enqueued there.
        """
        if not self.on_gpu:
            return tensor
        return _pinned(tensor.shape, tensor.dtype).copy_(tensor).to(self._device, non_blocking=True)

    def synchronize(self) -> None:
        """Wait until the device has done all its work; where no receive is under way."""
        if self.on_gpu:
            torch.cuda.synchronize(self._device)


def _pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Memory of the host that the device copies to and from by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Inside, random numbers may be drawn; afterwards the generators are as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class OwnRandomState:
    """Random numbers of their own for something that is entered again and again.

    Inside, generators go on from where they were at the end of the time before (the first time:
    from where they are); outside they are not changed by it.
    """

    def __init__(self, device: torch.device) -> None:
        """Of the CPU's generator, and of that of `device` if it is a GPU."""
        self._device = device
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Go on with the own random numbers."""
        with random_state_kept(self._device):
            if self._states is not None:
                restore_random_state(self._states, self._device)
            try:
                yield
            finally:
                self._states = random_state(self._device)


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The states of the generators of the CPU and, if `device` is a GPU, of that."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Put the generators into the states that `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def local_device(local_rank: int | None, processes: int) -> torch.device:
    """The device of this process: a GPU of its own where the machine has GPUs, else the CPU.

    Args:
        local_rank: Its number among the processes of this machine; `None`: the launcher did not
            say.
        processes: Their number, as far as is known.

    Raises:
        DeviceError: the machine has GPUs, but fewer than processes, or which of them is this
            process's cannot be known.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if gpus == 1 and len(os.environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1:
        return torch.device("cuda", 0)  # a launcher that shows each process its own GPU
    if local_rank is None and gpus > 1:
        raise DeviceError(
            f"LOCAL_RANK is not set and {gpus} GPUs are visible, needed the number of this process "
            "among those of its machine, or one visible GPU for each process"
        )
    if gpus < processes:
        raise DeviceError(
            f"{processes} processes on a machine with {gpus} GPUs, needed one GPU for each; "
            "hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on CPUs"
        )
    return torch.device("cuda", local_rank or 0)
