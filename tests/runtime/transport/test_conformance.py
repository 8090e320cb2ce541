"""Every transport does what `runtime.testing.conformance` says. A new one is entered here."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from runtime.distributed.process_group import process_group
from runtime.distributed.processes import launch
from runtime.testing import InMemoryNetwork, run_threads
from runtime.testing.conformance import CASES, LEAVES_NOTHING, Case, run_cases
from runtime.transport import Channels, SingleProcessTransport, TorchTransport, Transport
from tests.support.ranks import run_ranks

STAGES = 3
CPU_CHANNELS: tuple[Channels, ...] = ("memory", "shared", "per-edge")

Outcomes = list[dict[str, str]]
"""What went wrong, by case, on every stage."""


def in_memory() -> Outcomes:
    """Threads; each case has a network of its own, which the stages make together."""
    networks: list[InMemoryNetwork] = []

    def stage(end: Any) -> dict[str, str]:
        numbers = iter(range(len(CASES)))

        def make() -> Transport:
            number = next(numbers)
            end.gather_objects(None)
            if end.rank == 0:
                networks.append(InMemoryNetwork(STAGES))
            end.gather_objects(None)
            return networks[number].endpoint(end.rank)

        return run_cases(make)

    return run_threads(STAGES, stage, timeout=120)


@cache
def on_cpus() -> list[dict[str, dict[str, str]]]:
    """All kinds of channels, in the same processes."""
    return run_ranks(STAGES, rank_on_cpu)


def rank_on_cpu(_: None) -> dict[str, dict[str, str]]:
    return {channels: run_cases(partial(TorchTransport, channels=channels)) for channels in
            CPU_CHANNELS}  # fmt: skip


def over(channels: Channels) -> Outcomes:
    return [found[channels] for found in on_cpus()]


def on_gpus(channels: Channels) -> Outcomes:
    return launch(STAGES, rank_on_gpu, channels)


def rank_on_gpu(channels: Channels) -> Outcomes:
    with process_group() as device:
        found = run_cases(partial(TorchTransport, device=device, channels=channels))
        gathered: list[Any] = [None] * STAGES
        dist.all_gather_object(gathered, found)
        return gathered


NCCL = [
    pytest.mark.nccl,
    pytest.mark.skipif(torch.cuda.device_count() < STAGES, reason=f"needs {STAGES} GPUs"),
]
TRANSPORTS = [
    pytest.param(lambda: [run_cases(SingleProcessTransport)], id="single process"),
    pytest.param(lambda: [run_cases(lambda: InMemoryNetwork(1).endpoint(0))], id="in memory, one"),
    pytest.param(in_memory, id="in memory"),
    *(
        pytest.param(partial(over, kind), id=f"CPUs, {kind}", marks=pytest.mark.slow)
        for kind in CPU_CHANNELS
    ),
    *(
        pytest.param(partial(on_gpus, kind), id=f"NCCL, {kind}", marks=NCCL)
        for kind in ("shared", "per-edge")
    ),
]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_transport_conforms(transport: Callable[[], Outcomes]):
    outcomes = transport()
    cases = [case.name for case in CASES if case.ranks <= len(outcomes)]
    wrong = [{name: what for name, what in found.items() if what} for found in outcomes]
    assert wrong == [{}] * len(outcomes)
    assert [[*found] for found in outcomes] == [[*cases, LEAVES_NOTHING]] * len(outcomes)


def broken(change: Callable[[Any], None]) -> dict[str, str]:
    """What a transport of one process fails that was changed."""

    def make() -> Transport:
        end = SingleProcessTransport()
        change(end)
        return end

    return run_cases(make)


def test_a_transport_that_does_not_conform_is_told_by_case():
    def gathers_nothing(end: Any) -> None:
        end.gather_objects = lambda _: []

    def no_generation(end: Any) -> None:
        end.generation = 3

    assert [*broken(gathers_nothing)] == ["each_end_knows_its_place"]
    assert broken(no_generation)["each_end_knows_its_place"].startswith("AssertionError")


def test_cases_have_different_names():
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(isinstance(case, Case) for case in CASES)
