"""What process groups for channels need, and how it is refused when it is missing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime import Evaluator
from runtime.testing import InMemoryNetwork
from runtime.transport import TransportError
from runtime.transport.torch_distributed.channel_groups import ChannelGroups
from runtime.transport.torch_distributed.groups.nccl import LAUNCH_ORDER, require_eager
from schemas import Direction

GROUP: Any = SimpleNamespace()
PIPELINE: Any = SimpleNamespace(group=GROUP, rank=0)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_shared_channels_all_go_through_one_group():
    channels = ChannelGroups(PIPELINE, CPU, "shared")
    assert channels.route(Direction.SEND, 3) == (GROUP, 3)
    assert channels.route(Direction.RECV, 1) == (GROUP, 1)


def test_a_channel_of_its_own_has_to_be_connected_first():
    channels = ChannelGroups(PIPELINE, CPU, "per-edge")
    with pytest.raises(TransportError, match="the channel from rank 1 was not connected"):
        channels.route(Direction.RECV, 1)


def test_a_channel_of_its_own_has_one_group_for_all_evaluators_of_a_transport():
    made: list[Any] = []

    def edge(*ends: int) -> Any:
        made.append(ends)
        return f"group {len(made)}"

    channels = ChannelGroups(SimpleNamespace(rank=0, edge=edge), CPU, "per-edge")  # type: ignore
    wanted = [(Direction.SEND, 1), (Direction.RECV, 2)]
    assert channels.open(wanted) == wanted
    assert channels.open([*wanted, (Direction.RECV, 3)]) == [*wanted, (Direction.RECV, 3)]
    assert made == [(0, 1), (2, 0), (3, 0)]
    channels.clear()
    channels.open(wanted)
    assert made[3:] == [(0, 1), (2, 0)], "a new generation has new ones"


def test_unknown_channels_are_refused():
    known = "channels is 'many', needed one of memory, shared, per-edge"
    with pytest.raises(TransportError, match=known):
        ChannelGroups(PIPELINE, CPU, "many")  # type: ignore[arg-type]


def test_a_gpu_has_no_channels_through_the_memory_of_the_host():
    with pytest.raises(TransportError, match="channels is 'memory' and the device cuda:0"):
        ChannelGroups(PIPELINE, GPU, "memory")


def test_several_communicators_need_an_order_of_launches(monkeypatch):
    monkeypatch.delenv(LAUNCH_ORDER, raising=False)
    with pytest.raises(TransportError, match=f"{LAUNCH_ORDER} is None, needed '1'"):
        ChannelGroups(PIPELINE, GPU, "per-edge")
    ChannelGroups(PIPELINE, GPU, "shared")
    monkeypatch.setenv(LAUNCH_ORDER, "1")
    ChannelGroups(PIPELINE, GPU, "per-edge")


def test_a_lazily_initialised_nccl_group_is_refused():
    lazy: Any = SimpleNamespace(bound_device_id=None)
    with pytest.raises(TransportError, match="initialised without device_id"):
        require_eager(lazy)
    eager: Any = SimpleNamespace(bound_device_id=GPU)
    assert require_eager(eager) == GPU


def test_channels_are_those_of_the_transport_where_there_is_one():
    end = InMemoryNetwork(1).endpoint(0)
    with pytest.raises(ValueError, match="channels is 'per-edge', but the transport has channels"):
        Evaluator([torch.nn.Identity()], transport=end, channels="per-edge")


def test_channels_in_a_circle_get_groups_of_their_own_on_a_gpu_by_default(monkeypatch):
    monkeypatch.setenv(LAUNCH_ORDER, "1")
    channels = ChannelGroups(PIPELINE, GPU)
    assert (channels.kind, channels.route(Direction.SEND, 3)) == ("shared", (GROUP, 3))
    channels.separate()
    assert channels.kind == "per-edge"
    with pytest.raises(TransportError, match="the channel to rank 3 was not connected"):
        channels.route(Direction.SEND, 3)


def test_shared_channels_that_were_asked_for_are_refused_in_a_circle(monkeypatch):
    monkeypatch.setenv(LAUNCH_ORDER, "1")
    with pytest.raises(TransportError, match="channels is 'shared', but several stages on a rank"):
        ChannelGroups(PIPELINE, GPU, "shared").separate()
    monkeypatch.delenv(LAUNCH_ORDER)
    with pytest.raises(TransportError, match=f"{LAUNCH_ORDER} is None, needed '1'"):
        ChannelGroups(PIPELINE, GPU).separate()


@pytest.mark.parametrize("channels", [None, "memory", "shared"])
def test_between_cpus_every_channel_has_a_queue_in_any_case(channels):
    found = ChannelGroups(PIPELINE, CPU, channels)
    found.separate()
    assert found.kind == (channels or "memory")
