"""What is loaded is a copy, on the device of the stage."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from runtime.data import loading
from runtime.data.loading import loader_to
from runtime.tensors.allocator import _Glibc

CPU = torch.device("cpu")


@pytest.mark.parametrize("layout", ["plain", "sliced", "expanded", "offset"])
def test_on_a_cpu_copies_lie_in_memory_as_the_caller_s_tensors_do(layout):
    whole = torch.randn(6, 9)
    tensor = {
        "plain": whole,
        "sliced": whole[:, :-1],
        "expanded": whole[:1].expand(4, 9),
        "offset": whole.view(-1)[3:],
    }[layout]
    value = {"a": tensor, "b": [3, np.ones(1)]}
    copy = loader_to(CPU)(value).arrived()
    assert torch.equal(copy["a"], tensor)
    assert copy["a"].stride() == tensor.stride()
    assert copy["a"].data_ptr() % 64 == tensor.data_ptr() % 64
    whole.zero_()
    value["b"][1][:] = 0
    assert not torch.equal(copy["a"], tensor)
    assert copy["b"] == [3, np.ones(1)]


@pytest.mark.parametrize("layout", ["plain", "sliced", "two"])
def test_a_large_copy_is_made_beside_and_is_complete_when_it_is_asked_for(layout, monkeypatch):
    begin, copy = threading.Event(), loading._copy

    def when_told(parts: Any) -> None:
        assert begin.wait(30)
        copy(parts)

    monkeypatch.setattr(loading, "_copy", when_told)
    whole = torch.randn(600, 1000)
    value = {"plain": [whole], "sliced": [whole[:, 1:]], "two": {"a": whole, "b": whole[:5]}}[
        layout
    ]
    expected = pytree.tree_map(torch.clone, value)
    on_its_way = loader_to(CPU)(value)
    begin.set()
    on_its_way.settle()
    whole.zero_()
    found = on_its_way.arrived()
    for here, there in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(here, there)
    assert not [t for t in threading.enumerate() if t.name == loading.THREAD]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_arrive_on_a_gpu_unchanged():
    device = torch.device("cuda", torch.cuda.current_device())
    load = loader_to(device)
    values = [torch.randn(1000, 1000) for _ in range(8)]
    on_their_way = [load({"x": value, "n": 3}) for value in values]
    for value, way in zip(values, on_their_way, strict=True):
        arrived = way.arrived()
        assert arrived["n"] == 3
        assert arrived["x"].device == device
        assert torch.equal(arrived["x"].cpu(), value)


def test_the_allocator_is_never_told_to_keep_less(monkeypatch):
    told: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            told.append((parameter, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda _name: Library)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    glibc = _Glibc()
    for nbytes in (1000, 2**20, 2**19, 2**21):
        glibc.keep(nbytes)
    assert [value for parameter, value in told if parameter == -1] == [2**20, 2**21]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    glibc.keep(2**22)
    assert len(told) == 4
