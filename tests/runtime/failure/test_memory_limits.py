"""An allocation that fails, on any rank and anywhere, is told to all, and the next run is right."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from runtime import Evaluator
from tests.support.models_for_tests import batches
from tests.support.ranks import Said, attempt, run_ranks

ROOM = 2**25
"""Bytes of address space that a rank may still take."""

TOO_MUCH = 2**36

DATA = batches([2] * 4)


class Demanding(nn.Module):
    """A layer that is told what it takes."""

    wide, too_much = False, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.too_much:
            torch.empty(TOO_MUCH)
        return x.repeat(2 * ROOM // x.nbytes, 1) if self.wide else x


class Narrow(nn.Module):
    """The first rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:2]


@contextmanager
def little_memory(*, here: bool) -> Iterator[None]:
    """Let this process take `ROOM` more bytes at most, if it is meant."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM if here else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def run_out_of_memory(_: None) -> dict[str, Said]:
    """By place: what this rank said; then what it says of a run without a fault."""
    rank = dist.get_rank()
    wide, layer = Demanding(), Demanding()
    layers = [nn.Linear(4, 6), wide, layer, Narrow(), nn.Linear(6, 6)]
    evaluator = Evaluator(layers, loss_fn=nn.functional.mse_loss, partition=[0, 2, 5])

    def loader() -> Iterator[Any]:
        yield DATA[0]
        if rank == 0:
            bytearray(TOO_MUCH)
        yield from DATA[1:]

    said = {"before": attempt(lambda: evaluator.evaluate(DATA).loss)}
    with little_memory(here=rank == 0):
        said["loader"] = attempt(lambda: evaluator.evaluate(loader()).loss)
    layer.too_much = True
    with little_memory(here=rank == 1):
        said["layer"] = attempt(lambda: evaluator.evaluate(DATA).loss)
    layer.too_much, wide.wide = False, True
    with little_memory(here=rank == 1):
        said["receive"] = attempt(lambda: evaluator.evaluate(DATA).loss)
    wide.wide = False
    return said | {"after": attempt(lambda: evaluator.evaluate(DATA).loss)}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_that_runs_out_is_told_to_all_ranks_and_the_next_run_is_right():
    first, second = run_ranks(2, run_out_of_memory)
    for place, own, told in (
        ("the fetching of micro-batches: MemoryError", first["loader"], second["loader"]),
        ("ForwardPass(stage=1, micro_batch=0, ", second["layer"], first["layer"]),
        ("stage=1, micro_batch=0, ", second["receive"], first["receive"]),
    ):
        assert own.error in ("MemoryError", "RuntimeError", "OSError"), own
        assert own.error == "MemoryError" or "memory" in own.text, own
        assert told.error == "RemoteError", told
        assert place in told.text.splitlines()[0], told
    assert first["after"] == second["after"] == first["before"]
