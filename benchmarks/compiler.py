"""How long the compiler and its checks take, beside `torch.distributed.pipelining`'s own tools.

`python -m benchmarks.compiler` prints a table: medians of repeats that take turns, each in a fresh
state. `torch` generates the actions of a GPipe evaluation (a forward of each micro-batch on each
stage), adds sends and receives to them (`_add_send_recv`) and simulates the result
(`_simulate_comms_compute`); that is the most it can check about a schedule before it runs.
"""

import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import schedcc
from schedcc.analysis.times import Backend
from schedcc.verify import verdict

SMALL = ((64, 4), (256, 16))
"""Sizes `(M, S)` at which networkx gives a verdict in reasonable time."""
GROWTH = ((1024, 64), (2048, 64), (1024, 128))
LARGEST = (4096, 1024)
"""12.6 million instructions in the blocking form: only a verdict, no objects."""
LAZY = 1_000_000


@dataclass(frozen=True)
class Case:
    """Something to time."""

    name: str
    size: tuple[int, int]
    run: Callable[[], object]
    """Does the work; what it returns is let go after the clock has stopped."""


def cases() -> list[Case]:
    """Everything that is timed."""
    found = []
    for size in (*SMALL, *GROWTH):
        for overlap, form in ((False, "blocking"), (True, "overlapped")):
            compile_ = partial(schedcc.compile_pipeline, *size, overlap=overlap)
            found.append(Case(f"compile and check, {form}", size, compile_))
        arrays = partial(_check, size, "arrays")
        found.append(Case("check a plan again, arrays", size, arrays))
        found.append(Case("torch: generate, lower, simulate", size, partial(torch_tools, *size)))
    for size in SMALL:
        found.append(Case("check a plan again, networkx", size, partial(_check, size, "networkx")))
    for size in (*GROWTH, LARGEST):
        for overlap, form in ((False, "blocking"), (True, "overlapped")):
            verdict = partial(schedcc.check_schedule, *size, overlap=overlap)
            found.append(Case(f"verdict without a plan, {form}", size, verdict))
    for overlap, form in ((False, "blocking"), (True, "overlapped")):
        lazily = partial(schedcc.iter_steps, LAZY, 8, 3, overlap=overlap)
        stage = lambda steps=lazily: sum(len(step) for step in steps())  # noqa: E731
        found.append(Case(f"one stage, step by step, {form}", (LAZY, 8), stage))
    return found


@lru_cache(maxsize=1)
def _plan(size: tuple[int, int]) -> schedcc.PipelinePlan:
    return schedcc.compile_pipeline(*size)


def _check(size: tuple[int, int], backend: Backend) -> schedcc.Report:
    return verdict(_plan(size), None, backend)


def torch_tools(micro_batches: int, stages: int) -> Any:
    """What torch does with a forward-only schedule before it runs it."""
    from torch.distributed.pipelining import schedules

    forward = schedules._ComputationType.FORWARD
    order: dict[int, list[Any]] = {
        rank: [schedules._Action(rank, forward, m) for m in range(micro_batches)]
        for rank in range(stages)
    }
    lowered = schedules._add_send_recv(order, stage_to_rank=lambda s: s, num_stages=stages)
    return schedules._simulate_comms_compute(lowered, lambda s: s, stages)


def measure(chosen: list[Case], repeats: int) -> list[tuple[Case, float]]:
    """Median seconds of each case; the repeats take turns, so that all see the same machine."""
    seconds: dict[str, list[float]] = {f"{case.name} {case.size}": [] for case in chosen}
    for _ in range(repeats):
        for case in chosen:
            if "again" in case.name:
                _plan(case.size)
            gc.collect()
            began = time.perf_counter()
            result = case.run()
            seconds[f"{case.name} {case.size}"].append(time.perf_counter() - began)
            del result
    return [(case, median(seconds[f"{case.name} {case.size}"])) for case in chosen]


def main(
    repeats: Annotated[int, typer.Option(help="Repeats, of which the median counts.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Only the smallest size.")] = False,
) -> None:
    """Time the compiler, its checks, and torch's tools."""
    torch_tools(1, 1)  # imports torch
    chosen = [case for case in cases() if not quick or case.size == SMALL[0]]
    table = Table(title="compiler", title_justify="left")
    for heading in ("", "M", "S", "seconds", "instructions", "per instruction"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for case, seconds in measure(chosen, repeats):
        micro_batches, stages = case.size
        own = 1 if "one stage" in case.name else stages
        count = own * micro_batches * (5 if "overlapped" in case.name else 3)
        row = (f"{seconds:.3f}", f"about {count}", f"{seconds / count * 1e6:.2f} us")
        table.add_row(case.name, str(micro_batches), str(stages), *row)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"peak resident memory of this process: {peak:.0f} MiB")


if __name__ == "__main__":
    typer.run(main)
