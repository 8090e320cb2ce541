"""What real users evaluate gives, over any number of stages, what one process gives."""

from functools import cache
from typing import Any

import pytest
import torch

from runtime.testing import InMemoryTransport, run_threads
from tests.support.exact_cases import CASES, Found, drawn, one_process, over_stages
from tests.support.forks import launch_forks
from tests.support.workers import evaluate_exact_cases


@cache
def expected_of(name: str, _threads: int) -> Found:
    """What one process gives; the number of its threads may decide on bits."""
    return one_process(CASES[name])


def check(name: str, found: list[Found]) -> None:
    expected = expected_of(name, torch.get_num_threads())
    for stage in found:
        assert stage.losses == expected.losses
        assert stage.metric == expected.metric
        assert all(expected.kept[layer] == kept for layer, kept in stage.kept.items())


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_over_stages_in_memory_it_is_what_one_process_gives(name, stages, overlap):
    case = CASES[name]
    layers = [drawn(case) for _ in range(stages)]

    def stage(end: InMemoryTransport) -> Found:
        return over_stages(case, layers[end.rank], transport=end, overlap=overlap)

    check(name, run_threads(stages, stage, timeout=60))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("schedule", ["interleaved", "v_shape"])
@pytest.mark.parametrize("name", CASES)
def test_with_two_stages_on_each_rank_it_is_what_one_process_gives(name, schedule, overlap):
    case = CASES[name]
    layers = [drawn(case) for _ in range(2)]
    options = {"stages": 4, "schedule": schedule, "overlap": overlap}

    def rank(end: InMemoryTransport) -> Found:
        return over_stages(case, layers[end.rank], transport=end, **options)

    check(name, run_threads(2, rank, timeout=60, queue="channel"))


ONE_STAGE: dict[str, Any] = {}
INTERLEAVED: dict[str, Any] = {"stages": 4, "schedule": "interleaved"}
V_SHAPE: dict[str, Any] = {"stages": 4, "schedule": "v_shape"}


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ONE_STAGE | {"overlap": True}),
        (3, ONE_STAGE | {"overlap": False}),
        (3, ONE_STAGE | {"overlap": True}),
        (2, INTERLEAVED | {"overlap": True}),
        (2, INTERLEAVED | {"overlap": False}),
        (2, V_SHAPE | {"overlap": True}),
    ],
)
def test_in_processes_it_is_what_one_process_gives(ranks, options):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes
    try:
        for names_to_found in launch_forks(ranks, evaluate_exact_cases, options):
            for name, found in names_to_found.items():
                check(name.partition(" over ")[0], found)
    finally:
        torch.set_num_threads(threads)
