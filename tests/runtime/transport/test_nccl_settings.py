"""How communicators are made: without torch's watchdog, and with what settings."""

import os
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore

from runtime.distributed import process_group as process_group_module
from runtime.language.scoring import worker
from runtime.transport import NcclSettings
from runtime.transport.torch_distributed.groups.backends import Timeouts, bounded, new_group
from runtime.transport.torch_distributed.groups.nccl_settings import (
    BLOCKING_WAIT,
    PROCESS_DEFAULTS,
    set_process_defaults,
    without_watchdog,
)
from tests.support.fake_nccl import FakeProcessGroup, FakeProcessGroupNCCL

GPU = torch.device("cuda", 1)


@pytest.fixture
def make(monkeypatch):
    """Makes a group over fakes; its backend."""
    monkeypatch.setattr(dist, "ProcessGroupNCCL", FakeProcessGroupNCCL, raising=False)
    monkeypatch.setattr(dist, "ProcessGroup", FakeProcessGroup)
    monkeypatch.setattr(FakeProcessGroupNCCL, "made", [])
    for name in PROCESS_DEFAULTS:
        monkeypatch.delenv(name, raising=False)

    def make(settings: NcclSettings | None = None) -> FakeProcessGroupNCCL:
        store, timeouts = PrefixStore("one", HashStore()), Timeouts(wait=bounded(7))
        group: Any = new_group("nccl", store, 0, 2, GPU, timeouts, settings or NcclSettings())
        assert group.backends == {GPU: FakeProcessGroupNCCL.made[-1]}
        return FakeProcessGroupNCCL.made[-1]

    return make


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_groups_are_made_without_a_watchdog_that_would_end_a_recovered_process(
    before, make, monkeypatch
):
    if before is not None:
        monkeypatch.setenv(BLOCKING_WAIT, before)
    assert not make().has_watchdog
    assert os.environ.get(BLOCKING_WAIT) == before, "groups of others are as they were"


def test_the_environment_is_as_it_was_where_no_group_can_be_made(monkeypatch):
    monkeypatch.delenv(BLOCKING_WAIT, raising=False)
    with suppress(LookupError), without_watchdog():
        assert os.environ[BLOCKING_WAIT] == "1"
        raise LookupError
    assert BLOCKING_WAIT not in os.environ


def test_a_receive_that_is_posted_ahead_takes_few_multiprocessors(make):
    backend = make()
    assert backend.options.config.max_ctas == 4
    assert backend.options.is_high_priority_stream
    assert backend.options._timeout == bounded(7)
    assert not hasattr(backend.options.config, "blocking"), "left to torch"
    assert backend.calls == ["number", "connect cuda:1"]


def test_settings_can_be_left_to_nccl(make):
    options = make(NcclSettings(max_ctas=None, high_priority=False, nonblocking=True)).options
    assert not hasattr(options.config, "max_ctas")
    assert not options.is_high_priority_stream
    assert options.config.blocking == 0


def test_no_ctas_are_too_few():
    with pytest.raises(ValueError, match="max_ctas is 0, needed at least 1, or None"):
        NcclSettings(max_ctas=0)


def joined_by_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**names, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group_module.process_group() as device:
        assert device == GPU


def joined_by_scorer(_: pytest.MonkeyPatch) -> None:
    assert worker.join(HashStore(), 1, 2) == GPU


@pytest.mark.parametrize("join", [joined_by_launcher, joined_by_scorer])
def test_processes_that_are_launched_have_neither_watchdogs_nor_monitors(join, monkeypatch):
    at_init: list[dict[str, str]] = []
    for name in PROCESS_DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")  # what a user has set is left alone
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        dist, "init_process_group", lambda *_, **__: at_init.append(dict(os.environ))
    )
    join(monkeypatch)
    expected = PROCESS_DEFAULTS | {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    assert {name: at_init[0].get(name) for name in PROCESS_DEFAULTS} == expected
    assert expected[BLOCKING_WAIT] == "1"


def test_what_is_set_already_stays(monkeypatch):
    for name in PROCESS_DEFAULTS:
        monkeypatch.setenv(name, "mine")
    set_process_defaults()
    assert {os.environ[name] for name in PROCESS_DEFAULTS} == {"mine"}
