"""A communicator as strict as `ProcessGroupNCCL` (torch 2.13), which records its calls."""

import threading
from typing import Any

import torch

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
    """Its wait returns without error after an abort, as that of NCCL does."""

    def __init__(self, group: FakeNccl) -> None:
        self.group = group

    def wait(self) -> None:
        self.group.calls.append("wait")
