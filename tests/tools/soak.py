"""Many evaluations in one process group: nothing grows with their number.

`make soak` (`python -m tests.tools.soak --evaluations 10000`). Two pipelines of two ranks run side
by side, in the same processes' group. Every 50th evaluation fails on one rank, every 40th is made
by a new evaluator, every 70th from a thread of its own, and the last one has 100,000 micro-batches.

What is measured after each part: resident memory, descriptors and threads of every rank, and keys
in the store. It is flat if the straight line through the measurements, the first tenth left out,
rises by less than `SLACK` in all.
"""

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from runtime import Evaluator, RemoteError
from tests.support.models_for_tests import batches
from tests.support.ranks import run_ranks

PARTS = 40
SLACK = {"memory": 8 * 2**20, "descriptors": 2.0, "threads": 1.0, "keys": 16.0}
"""What a measurement may rise by, from the first to the last: bytes, and numbers."""

FAILS, RENEWED, THREADED = 50, 40, 70
"""Every so many evaluations one fails, is made by a new evaluator, and comes from a thread."""

MICRO_BATCHES = 3


class Measured(NamedTuple):
    """Of one rank, after a part of the evaluations."""

    memory: float
    """Bytes that are resident."""
    descriptors: float
    threads: float
    keys: float
    """In the store of all ranks."""


class SoakError(RuntimeError):
    """Raised in an evaluation that is to fail."""


class Fails(nn.Module):
    """A layer that fails when it is told to."""

    due = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.due:
            raise SoakError("now")
        return x


def measured() -> Measured:
    """This process, now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    store = dist.distributed_c10d._get_default_store()
    return Measured(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        store.num_keys(),
    )


def soak(settings: tuple[int, int]) -> list[Measured]:
    """Evaluate so many times, and then so many micro-batches, on one of four ranks."""
    evaluations, long = settings
    here = dist.get_rank()
    groups = [dist.new_group([2 * pair, 2 * pair + 1]) for pair in range(2)]
    pipeline = _Pipeline(groups[here // 2], last=here % 2 == 1)
    found = []
    part = max(1, evaluations // PARTS)
    for number in range(1, evaluations + 1):
        pipeline.evaluate(number)
        if number % part == 0:
            found.append(measured())
    peak = pipeline.many(long)
    return [*found, peak]


class _Pipeline:
    """The evaluator of one rank, and its successors."""

    def __init__(self, group: dist.ProcessGroup, *, last: bool) -> None:
        from runtime.transport import TorchTransport

        self._transport, self._last = TorchTransport(group), last
        self._data = batches([2] * MICRO_BATCHES)
        self._renew()

    def evaluate(self, number: int) -> None:
        """One evaluation, as its number says."""
        if number % RENEWED == 0:
            self._evaluator.close()
            self._renew()
        self._fails.due = number % FAILS == 0 and self._last
        if number % THREADED == 0 and number % FAILS:
            failed: list[BaseException] = []
            thread = threading.Thread(target=self._attempt, args=(failed,))
            thread.start()
            thread.join()
            if failed:
                raise failed[0]
            return
        try:
            self._once()
        except (SoakError, RemoteError):
            if number % FAILS:
                raise
        else:
            assert number % FAILS, f"evaluation {number} was to fail"

    def many(self, micro_batches: int) -> Measured:
        """One evaluation of many micro-batches; what there is in the end."""
        pair = self._data[0]

        def data() -> Iterator[Any]:
            for _ in range(micro_batches):
                yield pair

        self._fails.due = False
        result = self._evaluator.evaluate(data())
        assert result.micro_batches == micro_batches
        return measured()

    def _attempt(self, failed: list[BaseException]) -> None:
        try:
            self._once()
        except BaseException as error:
            failed.append(error)

    def _once(self) -> None:
        self._evaluator.eval_batch(iter(self._data), num_micro_batches=MICRO_BATCHES)

    def _renew(self) -> None:
        torch.manual_seed(0)
        self._fails = Fails()
        layers = [nn.Linear(4, 6), nn.Tanh(), self._fails, nn.Linear(6, 6)]
        self._evaluator = Evaluator(
            layers,
            loss_fn=nn.functional.mse_loss,
            partition=[0, 2, 4],
            transport=self._transport,
            timeout=60.0,
        )


def rises(found: list[Measured]) -> dict[str, float]:
    """By how much each measurement rises, along the line through all but the first tenth."""
    kept = np.array(found[len(found) // 10 :], dtype=np.float64)
    at = np.arange(len(kept))
    slopes = np.polyfit(at, kept, 1)[0]
    return dict(zip(Measured._fields, (slopes * (len(kept) - 1)).tolist(), strict=True))


def run(evaluations: int, long: int) -> Iterator[tuple[int, dict[str, float], list[Measured]]]:
    """What every rank measured, and how it rose.

    Raises:
        AssertionError: a rank failed, or something grew.
    """
    for rank, found in enumerate(run_ranks(4, soak, (evaluations, long), patience=float("inf"))):
        assert isinstance(found, list), f"rank {rank}: {found!r}"
        yield rank, rises(found[:-1]), found


def main() -> None:
    """Do what the command line asks for; exit status 1 if anything grows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--micro-batches", type=int, default=100_000)
    options = parser.parse_args()
    began, flat = time.monotonic(), True
    for rank, rose, found in run(options.evaluations, options.micro_batches):
        first, last, after = found[len(found) // 10], found[-2], found[-1]
        for name, limit in SLACK.items():
            values = [getattr(measured, name) for measured in (first, last, after)]
            unit = 2**20 if name == "memory" else 1
            first_, last_, after_ = (value / unit for value in values)
            print(
                f"rank {rank} {name:12} {first_:8.1f} to {last_:8.1f}, "
                f"rises {rose[name] / unit:6.2f}"
                f" (at most {limit / unit:g}); after {options.micro_batches} micro-batches "
                f"{after_:8.1f}"
            )
            flat = flat and rose[name] <= limit
    print(f"{options.evaluations} evaluations in {time.monotonic() - began:.0f} s")
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
