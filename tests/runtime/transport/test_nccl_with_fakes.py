"""What is done on NCCL, in which order and beside what, with a fake as strict as its source."""

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from runtime import device
from runtime.device import Clock, DeviceError, local_device
from runtime.failure.report import Failure
from runtime.failure.state import FailureState
from runtime.testing import InMemoryNetwork
from runtime.transport import TransportError
from runtime.transport.torch_distributed.groups import abort as abort_module
from runtime.transport.torch_distributed.groups import nccl, process_groups
from runtime.transport.torch_distributed.groups.backends import require_backend
from runtime.transport.torch_distributed.groups.nccl import device_of_nccl
from runtime.transport.torch_distributed.groups.point_to_point import Call, begin_together
from runtime.transport.torch_distributed.groups.process_groups import (
    RenewableGroup,
    abandon_together,
)
from schemas import Direction
from tests.support.fake_nccl import SOON, FakeDevice, FakeNccl

CPU, MINUTE = torch.device("cpu"), timedelta(minutes=1)
TENSOR = torch.zeros(1, dtype=torch.uint8)
CALLS = [Call(Direction.SEND, TENSOR, 2), Call(Direction.RECV, TENSOR, 0)]


@pytest.fixture(autouse=True)
def _sound(monkeypatch):
    monkeypatch.setattr(nccl, "_unsound", "")
    pinned: Any = lambda shape, dtype: torch.empty(shape, dtype=dtype)  # noqa: E731
    monkeypatch.setattr(device, "_pinned", pinned)


NEW = RenewableGroup._new


@pytest.fixture
def opened(monkeypatch):
    """Makes groups of rank 1 of 3 over fake communicators, all of one device."""

    def opened(*names: str) -> tuple[list[RenewableGroup], list[FakeNccl]]:
        gpu, made = FakeDevice(len(names)), []

        def new(_: RenewableGroup, name: str, *_where: int) -> FakeNccl:
            made.append(FakeNccl(name, gpu))
            return made[-1]

        monkeypatch.setattr(RenewableGroup, "_new", new)
        monkeypatch.setattr(process_groups, "backend_of", lambda *_: "nccl")
        monkeypatch.setattr(dist, "get_process_group_ranks", lambda _: [4, 5, 6])
        parent: Any = SimpleNamespace(rank=lambda: 1, size=lambda: 3)
        renewables = [RenewableGroup(parent, InMemoryNetwork(1).store, CPU) for _ in names]
        for renewable in renewables:
            renewable.open(0, MINUTE)
        return renewables, made

    return opened


def test_all_aborts_are_under_way_before_any_is_waited_for(opened):
    renewables, made = opened("pipeline", "replicas")
    abandon_together(renewables)
    assert [group.aborted for group in made] == [True, True]


def test_an_abort_that_fails_spares_no_other(opened):
    renewables, made = opened("pipeline", "replicas", "third")
    made[0].refuses.add("abort")
    abandon_together(renewables)
    assert [group.aborted for group in made] == [False, True, True]


def test_no_abort_is_made_beside_a_call(opened):
    (renewable,), (group,) = opened("pipeline")
    in_call, may_leave = threading.Event(), threading.Event()

    def post() -> None:
        with renewable.call(), group.inside:
            in_call.set()
            may_leave.wait(SOON)

    posting = threading.Thread(target=post)
    posting.start()
    assert in_call.wait(SOON)
    aborting = threading.Thread(target=renewable.abandon)
    aborting.start()
    aborting.join(0.1)
    assert not group.aborted
    may_leave.set()
    aborting.join(SOON)
    posting.join(SOON)
    assert group.aborted


def test_a_call_that_is_stuck_does_not_hold_an_abort_up_for_long(opened, monkeypatch):
    monkeypatch.setattr(abort_module, "CALL_SECONDS", 0.05)
    (renewable,), (group,) = opened("pipeline")
    in_call, may_leave = threading.Event(), threading.Event()

    def post() -> None:
        with renewable.call():
            in_call.set()
            may_leave.wait(SOON)

    posting = threading.Thread(target=post)
    posting.start()
    assert in_call.wait(SOON)
    renewable.abandon()
    assert group.aborted
    may_leave.set()
    posting.join(SOON)


def test_nothing_is_posted_after_an_abort(opened):
    (renewable,), (group,) = opened("pipeline")
    renewable.abandon()
    with pytest.raises(TransportError, match="aborted after a failure"), renewable.call():
        raise AssertionError
    assert group.calls == ["abort"]


def test_what_a_collective_brought_is_not_believed_after_an_abort(opened):
    (renewable,), (group,) = opened("pipeline")
    work = group.broadcast(TENSOR, 0)
    renewable.abandon()
    for wait in (lambda: renewable.wait(work), lambda: renewable.finish([work])):
        with pytest.raises(TransportError, match="aborted after a failure"):
            wait()


def test_the_host_hears_of_an_abort_while_it_waits_for_the_device(opened):
    (renewable,), (group,) = opened("pipeline")
    renewable._clock = Never()
    threading.Timer(0.05, renewable.abandon).start()
    with pytest.raises(TransportError, match="aborted after a failure"):
        renewable.all_gather(TENSOR)
    assert group.calls[:2] == ["all_gather", "wait"]


def test_a_host_that_connects_to_a_rank_that_died_hears_of_it(opened, monkeypatch):
    (renewable,), _ = opened("pipeline")
    renewable.abandon()
    connecting, never = threading.Event(), threading.Event()

    def connects() -> None:
        connecting.set()
        never.wait(SOON)

    monkeypatch.setattr(RenewableGroup, "_new", NEW)
    monkeypatch.setattr(renewable, "_store", SimpleNamespace(clone=connects))
    raised: list[BaseException] = []

    def main() -> None:
        try:
            renewable.open(1, MINUTE)
        except TransportError as error:
            raised.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    assert connecting.wait(SOON)
    renewable.abandon()  # as the heartbeat thread does
    thread.join(SOON / 2)
    assert [str(error) for error in raised] == ["the process group was aborted after a failure"]
    never.set()


def test_an_error_in_the_making_of_a_group_is_raised_where_it_is_wanted(opened, monkeypatch):
    (renewable,), _ = opened("pipeline")
    renewable.abandon()

    def refuses(*_: Any) -> None:
        raise dist.DistBackendError("Duplicate GPU")

    monkeypatch.setattr(RenewableGroup, "_new", refuses)
    with pytest.raises(dist.DistBackendError, match="Duplicate GPU"):
        renewable.open(1, MINUTE)


class Never(Clock):
    """A device that never gets there."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.on_gpu = True

    def mark(self) -> float:
        return 0.0

    def reached(self, _mark: Any) -> bool:
        return False


@pytest.mark.parametrize("refused", ["send to 2", "receive from 0", "end"])
def test_an_error_within_a_group_of_transfers_ends_the_use_of_nccl(refused, opened):
    (renewable,), (group,) = opened("pipeline")
    group.refuses.add(refused)
    with pytest.raises(RuntimeError, match=f"NCCL error in {refused}"):
        begin_together(group, CALLS, CPU)  # type: ignore[arg-type]
    assert group._device.open_groups == (refused == "end")
    refusal = f"after an error within a group of transfers .*{refused}.*start all processes again"
    with pytest.raises(TransportError, match=refusal), renewable.call():
        raise AssertionError
    renewable.abandon()
    with pytest.raises(TransportError, match=refusal):
        renewable.open(1, MINUTE)


def test_a_tensor_elsewhere_is_refused_before_a_group_of_transfers_is_open(opened):
    (renewable,), (group,) = opened("pipeline")
    elsewhere = [CALLS[0], Call(Direction.RECV, torch.zeros(3, device="meta"), 0)]
    with pytest.raises(TransportError, match="12 bytes to be moved are on meta, needed on cpu"):
        begin_together(group, elsewhere, CPU)  # type: ignore[arg-type]
    assert group.calls == []
    with renewable.call():
        assert len(begin_together(group, CALLS, CPU)) == 2  # type: ignore[arg-type]
    assert group.calls == ["start", "send to 2", "receive from 0", "end"]


def test_groups_are_shut_down_when_they_are_closed_or_the_program_ends(opened):
    (closed, ended), (one, other) = opened("closed", "ended")
    closed.close()
    assert one.calls == ["shutdown"]
    assert ended._shut_down.atexit
    ended._shut_down()  # as at the end of the program
    assert other.calls == ["shutdown"]


def test_groups_that_were_aborted_are_not_shut_down(opened):
    (renewable,), (group,) = opened("pipeline")
    renewable.abandon()
    renewable.close()
    assert group.calls == ["abort"]


def test_channels_that_cannot_be_aborted_are_no_failure_of_their_own():
    def abort() -> None:
        raise RuntimeError("no abort")

    state = FailureState(abort)
    state.set(Failure(kind="stalled", reporter=0, name="stage 0", at="x", reason="why"))
    with pytest.warns(UserWarning, match="the channels could not be aborted: no abort"):
        state.acknowledged_by_all()
    assert state.failure is not None
    assert state.failure.reason == "why"


def test_gloo_does_not_move_the_tensors_of_a_gpu():
    gloo: Any = SimpleNamespace(_get_backend=lambda _: SimpleNamespace(name=lambda: "gloo"))
    with pytest.raises(TransportError, match=r"backend for cuda:1 is gloo, .* needed NCCL"):
        require_backend(gloo, torch.device("cuda", 1))
    assert require_backend(gloo, CPU) == "gloo"


def test_a_group_of_several_backends_is_nccl_where_the_device_is_a_gpu():
    names = {"cpu": "gloo", "cuda": "nccl"}
    both: Any = SimpleNamespace(
        _get_backend=lambda device: SimpleNamespace(name=lambda: names[device.type])
    )
    assert require_backend(both, torch.device("cuda", 0)) == "nccl"


def test_the_device_is_the_one_that_nccl_was_initialised_for():
    world: Any = SimpleNamespace(bound_device_id=torch.device("cuda", 1))
    assert device_of_nccl(world, None) == torch.device("cuda", 1)
    assert device_of_nccl(world, torch.device("cuda")) == torch.device("cuda", 1)
    with pytest.raises(TransportError, match="device is cuda:0, but NCCL was initialised for cuda"):
        device_of_nccl(world, torch.device("cuda", 0))


def test_events_are_recorded_on_the_stream_of_their_own_device(monkeypatch):
    calls: list[Any] = []

    class FakeEvent:
        def __init__(self, *, enable_timing: bool) -> None:
            calls.append(("event", enable_timing))

        def record(self, stream: Any = "the current stream of the current device") -> None:
            calls.append(("record", stream))

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    Clock(torch.device("cuda", 1)).mark()
    assert calls == [("event", True), ("record", "stream of cuda:1")]


@pytest.mark.parametrize(
    ("visible", "gpus", "local_rank", "found"),
    [
        (None, 8, 3, 3),
        ("4", 1, 3, 0),
        ("GPU-5e", 1, None, 0),
        (None, 1, None, 0),
    ],
)
def test_a_process_has_its_own_gpu(visible, gpus, local_rank, found, monkeypatch):
    gpus_are(gpus, visible, monkeypatch)
    processes = 4 if visible or gpus > 1 else 1
    assert local_device(local_rank, processes) == torch.device("cuda", found)


def test_a_process_whose_gpu_is_not_known_is_refused(monkeypatch):
    gpus_are(8, None, monkeypatch)
    with pytest.raises(DeviceError, match="LOCAL_RANK is not set and 8 GPUs are visible"):
        local_device(None, 1)
    gpus_are(2, "0,1", monkeypatch)
    with pytest.raises(DeviceError, match="4 processes on a machine with 2 GPUs"):
        local_device(1, 4)


def gpus_are(number: int, visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
