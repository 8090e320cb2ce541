"""A communicator as strict as `ProcessGroupNCCL` (torch 2.13), which records its calls."""

import os
import threading
from typing import Any, ClassVar

import torch
from torch._C._distributed_c10d import PrefixStore

SOON = 20.0


class FakeDevice:
    """A GPU on which a receive of any communicator spins until all of them are being aborted."""

    def __init__(self, communicators: int) -> None:
        self.all_aborting = threading.Barrier(communicators)
        self.open_groups = 0
        """Of transfers, on this thread; nothing is launched while there is one."""


class FakeNccl:
    """One communicator."""

    def __init__(self, name: str, device: FakeDevice | None = None) -> None:
        self.name, self._device = name, device or FakeDevice(1)
        self.calls: list[str] = []
        self.refuses: set[str] = set()
        """Calls that raise what NCCL would."""
        self.inside = threading.Lock()
        """Held by a thread that is inside a call."""
        self.aborted = False

    def send(self, _tensors: Any, peer: int, _tag: int) -> Any:
        return self._post(f"send to {peer}")

    def recv(self, _tensors: Any, peer: int, _tag: int) -> Any:
        return self._post(f"receive from {peer}")

    def allgather(self, _into: Any, _of: Any) -> Any:
        return self._post("all_gather")

    def broadcast(self, _tensor: Any, source: int) -> Any:
        return self._post(f"broadcast from {source}")

    def _start_coalescing(self, _: torch.device) -> None:
        self._device.open_groups += 1
        self.calls.append("start")

    def _end_coalescing(self, _: torch.device) -> Any:
        self._post("end")
        self._device.open_groups -= 1
        return FakeWork(self)

    def abort(self) -> None:
        assert self.inside.acquire(blocking=False), "an abort beside a call"
        self.inside.release()
        if "abort" in self.refuses:
            self._device.all_aborting.wait(SOON)
            raise RuntimeError("abort failed")
        self._device.all_aborting.wait(SOON)  # raises unless the others come as well
        self.aborted = True
        self.calls.append("abort")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def _post(self, what: str) -> "FakeWork":
        with self.inside:
            if what in self.refuses:
                raise RuntimeError(f"NCCL error in {what}")
            self.calls.append(what)
        return FakeWork(self)


class FakeWork:
    """That of a group without a watchdog: it makes the stream wait, after an abort as well."""

    def __init__(self, group: FakeNccl) -> None:
        self.group = group

    def block_current_stream(self) -> None:
        self.group.calls.append("wait")

    def wait(self) -> None:
        raise AssertionError("in blocking-wait mode, wait() blocks the host")


class FakeConfig:
    """`ncclConfig_t`, as far as torch lets Python set it."""

    __slots__ = ("blocking", "cga_cluster_size", "max_ctas", "min_ctas")


class FakeOptions:
    """`ProcessGroupNCCL.Options`."""

    __slots__ = ("_timeout", "config", "is_high_priority_stream")

    def __init__(self, is_high_priority_stream: bool = False) -> None:
        self.config, self.is_high_priority_stream = FakeConfig(), is_high_priority_stream


class FakeProcessGroupNCCL:
    """The backend of one group: what its constructor reads, and what is done to it."""

    Options = FakeOptions
    made: ClassVar[list["FakeProcessGroupNCCL"]] = []

    def __init__(self, store: Any, rank: int, size: int, options: FakeOptions) -> None:
        assert 0 <= rank < size, "no such rank"
        assert isinstance(store, PrefixStore), "ids of several groups would be mixed up"
        self.options = options
        self.calls: list[str] = []
        # As `getCvarBool` reads it; without it, a watchdog that ends the process is started.
        self.has_watchdog = os.environ.get("TORCH_NCCL_BLOCKING_WAIT", "0").lower() not in (
            *("1", "y", "yes", "t", "true", "on"),
        )
        self.made.append(self)

    def _set_sequence_number_for_group(self) -> None:
        self.calls.append("number")

    def eager_connect_single_device(self, device: torch.device) -> None:
        assert device.index is not None, "a communicator is on one device"
        self.calls.append(f"connect {device}")


class FakeProcessGroup:
    """`ProcessGroup`, with backends that need not be torch's."""

    BackendType = torch.distributed.ProcessGroup.BackendType

    def __init__(self, *_where: Any) -> None:
        self.backends: dict[torch.device, Any] = {}

    def _set_default_backend(self, kind: Any) -> None:
        assert kind == self.BackendType.NCCL

    def _register_backend(self, device: torch.device, kind: Any, backend: Any) -> None:
        assert kind == self.BackendType.NCCL
        assert backend.calls[-1] == f"connect {device}", "registered before it is connected"
        self.backends[device] = backend
