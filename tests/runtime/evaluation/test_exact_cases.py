"""What real users evaluate gives, over any number of stages, what one process gives."""

import pytest
import torch

from runtime.distributed.processes import launch
from runtime.testing import InMemoryTransport, run_stages
from tests.support.exact_cases import CASES, ExactCase, Found, drawn, one_process, over_stages
from tests.support.workers import evaluate_exact_cases


def check(case: ExactCase, found: list[Found]) -> None:
    expected = one_process(case)
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
        return over_stages(case, layers[end.stage_id], transport=end, overlap=overlap)

    check(case, run_stages(stages, stage, timeout=60))


@pytest.mark.parametrize(("stages", "overlap"), [(2, True), (3, False), (3, True)])
def test_in_processes_it_is_what_one_process_gives(stages, overlap, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes
    try:
        for names_to_found in launch(stages, evaluate_exact_cases, overlap):
            for name, found in names_to_found.items():
                check(CASES[name.partition(" over ")[0]], found)
    finally:
        torch.set_num_threads(threads)
