"""Micro-batches set out for the device one ahead of their need."""

from typing import Any

import pytest
import torch

from runtime import micro_batches
from runtime.allocator import _Glibc
from runtime.loading import loader_to
from runtime.micro_batches import DrawnSource
from schemas import Place

CPU = torch.device("cpu")


class Loader:
    """Notes what sets out, and when it is taken."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, value: str) -> Any:
        self.log.append(f"start {value}")
        outer = self

        class Way:
            def arrived(self) -> str:
                outer.log.append(f"take {value}")
                return value

        return Way()


@pytest.fixture
def loader(monkeypatch) -> Loader:
    made = Loader()
    monkeypatch.setattr(micro_batches, "loader_to", lambda _device: made)
    return made


def test_the_next_micro_batch_sets_out_before_this_one_is_used(loader):
    source = DrawnSource([("x0", "y0"), ("x1", "y1")], CPU, inputs=True, labels=True)
    assert source.load(0) == {Place.INPUT: "x0", Place.LABEL: "y0"}
    assert source.load(1) == {Place.INPUT: "x1", Place.LABEL: "y1"}
    started = ["start x0", "start y0", "start x1", "start y1"]
    assert loader.log == [*started, "take x0", "take y0", "take x1", "take y1"]


def test_micro_batches_may_be_loaded_in_any_order(loader):
    source = DrawnSource([("x0", "y0"), ("x1", "y1"), ("x2", "y2")], CPU, inputs=True, labels=False)
    loaded = [source.load(m)[Place.INPUT] for m in (2, 0, 0, 1)]
    assert loaded == ["x2", "x0", "x0", "x1"]
    assert "start y0" not in loader.log


def test_on_a_cpu_values_stay_where_they_are():
    value = {"a": torch.zeros(2), "b": [3, torch.ones(1)]}
    assert loader_to(CPU)(value).arrived() is value


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
