"""Pipelines of emulated devices, in processes of their own, beside what no pipeline can beat.

`python -m benchmarks.emulated [ROW ...] [--repeats N]` prints for each row the seconds of every
repeat, and their median beside the limit. A stage sleeps for its time, so that the processor is
free for the runtime as it is beside a GPU; a machine that does other work still delays it. Limits
are of stages that take what they took: a sleep of 50 ms takes 50.1 to 50.3.

- `naive`: S = 4, against the same stages used one at a time.
- `loader`: S = 4, with a `DataLoader` whose one worker takes 0.8 of a stage's time for each
  micro-batch.
- `iterable`: the same without a worker, asked by a thread.
- `long`: S = 8 and M = 1024, against (M + S - 1) t.
- `lengths`: 2,000 requests of different lengths as a scorer divides them, over S = 4 stages that
  take time by the token, in the first run that sees these shapes; against one device.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.workload import Pair
from runtime import Evaluator
from runtime.distributed.process_group import process_group
from runtime.distributed.processes import launch
from runtime.language.scoring.batching import MAX_TOKENS, MicroBatch, micro_batches, rows_of
from runtime.language.scoring.pairs import TokenPair
from runtime.transport import TorchTransport

WIDTH = 1024
REQUESTS = 2000


class Row(NamedTuple):
    """One measurement."""

    stages: int
    micro_batches: int
    seconds: float
    """Of a stage for each micro-batch; of `lengths`: for one of `MAX_TOKENS` tokens."""
    loader: float = 0.0
    """Seconds of the loader for each micro-batch."""
    workers: int = 0
    """Processes of the loader."""
    lengths: bool = False


ROWS = {
    "naive": Row(4, 64, 0.05),
    "loader": Row(4, 64, 0.05, loader=0.04, workers=1),
    "iterable": Row(4, 64, 0.05, loader=0.04),
    "long": Row(8, 1024, 0.1),
    "lengths": Row(4, 0, 0.02, lengths=True),
}


class Device(nn.Module):
    """A stage: `x + 1`, after a time for each of its rows of numbers."""

    def __init__(self, seconds: float) -> None:
        """Take `seconds` for a row."""
        super().__init__()
        self.seconds = seconds
        self.rows, self.taken = 0, 0.0
        """So far, and the seconds that they took."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the device busy for [rows, ...]."""
        start = time.perf_counter()
        y = x + 1.0
        time.sleep(max(0.0, start + self.seconds * len(x) - time.perf_counter()))
        self.rows, self.taken = self.rows + len(x), self.taken + time.perf_counter() - start
        return y


class Slow(Dataset[Pair]):
    """Micro-batches that take their time to come."""

    def __init__(self, pairs: list[Pair], seconds: float) -> None:
        """Take `seconds` for each of `pairs`."""
        self.pairs, self.seconds = pairs, seconds

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Pair:
        time.sleep(self.seconds)
        return self.pairs[number]


def requests() -> list[MicroBatch]:
    """Requests of 2,000 different lengths, as a scorer divides them."""
    pairs = [TokenPair([0] * (1 + number), [1]) for number in range(REQUESTS)]
    return micro_batches(rows_of(pairs), max_tokens=MAX_TOKENS)


def data_of(row: Row) -> tuple[list[Pair], float]:
    """The micro-batches, and the seconds of a stage for a row of numbers."""
    if row.lengths:
        sizes = [len(batch.rows) * batch.length for batch in requests()]
        data = [(torch.zeros(size, 8), torch.zeros(8)) for size in sizes]
        return data, row.seconds / MAX_TOKENS
    return [(torch.zeros(1, WIDTH), torch.zeros(WIDTH))] * row.micro_batches, row.seconds


def limits(row: Row, seconds: float) -> dict[str, float]:
    """Seconds of one device after the other, and of a pipeline without any overhead.

    Args:
        row: What is evaluated.
        seconds: That a stage takes for a row of numbers.
    """
    data, _ = data_of(row)
    times = [seconds * len(inputs) for inputs, _ in data]
    longest = max(times)
    return {
        "one at a time": row.stages * sum(times),
        "ideal": sum(times) + (row.stages - 1) * longest,
    }


class Measured(NamedTuple):
    """A repeat, on one rank."""

    start: float
    end: float
    """Seconds, on the clock that all processes share."""
    rows: int
    taken: float
    """Seconds of its stage for these rows of numbers."""


def evaluate(work: tuple[Row, int]) -> list[list[Measured]]:
    """Each repeat, on all ranks; they start together."""
    row, repeats = work
    torch.set_num_threads(1)
    data, seconds = data_of(row)
    with process_group(connected=False) as device:
        transport = TorchTransport(device=device)
        found = []
        for _ in range(repeats):
            devices = [Device(seconds) for _ in range(row.stages)]
            with Evaluator(
                devices,
                loss_fn=lambda output, label: (output[0] - label).square().mean(),
                weight_fn=lambda _: 1.0,
                partition="uniform",
                transport=transport,
                fetch_in_thread=True if row.loader and not row.workers else "auto",
            ) as evaluator:
                slow = DataLoader(Slow(data, row.loader), batch_size=None, num_workers=row.workers)
                loader = slow if row.loader else data
                transport.gather_objects(None)
                start = time.perf_counter()
                evaluator.evaluate(loader)
                own = devices[transport.rank]
                measured = Measured(start, time.perf_counter(), own.rows, own.taken)
                found.append(transport.gather_objects(measured))
        return found


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default: {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.rows or ROWS:
        row = ROWS[name]
        found = launch(row.stages, evaluate, (row, options.repeats), start_method="fork")
        spans = [max(m.end for m in ranks) - min(m.start for m in ranks) for ranks in found]
        devices = [measured for ranks in found for measured in ranks]
        taken = sum(device.taken for device in devices) / sum(device.rows for device in devices)
        limit, median = limits(row, taken), statistics.median(spans)
        print(f"{name}: {', '.join(f'{each:.2f}' for each in spans)} s;", end=" ")
        print(f"{median / limit['ideal']:.3f} of the ideal {limit['ideal']:.2f} s,", end=" ")
        print(f"{limit['one at a time'] / median:.2f} times as fast as one device at a time")
        if row.lengths:
            tokens = sum(batch.tokens for batch in requests())
            size = sum(len(batch.rows) * batch.length for batch in requests())
            print(f"lengths: {1 - tokens / size:.3f} of the tokens are padding")


if __name__ == "__main__":
    main()
