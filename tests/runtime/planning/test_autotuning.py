"""The form of the plans is the caller's choice, or measured: the same on all stages."""

from typing import Any

import pytest
import torch

from runtime.planning.autotuning import RUNS, Autotuner
from runtime.testing import InMemoryTransport, run_threads
from schemas import PostRecvActivation, PostSendActivation, RecvActivation, SendActivation
from tests.runtime.evaluation.test_evaluator import eval_batch
from tests.support.models_for_tests import batches, over_stages


class Seen:
    """A listener that notes which instructions ran."""

    def __init__(self) -> None:
        self.kinds: set[type] = set()

    def started(self, placed: Any) -> None:
        self.kinds.add(type(placed.instruction))

    def finished(self, placed: Any) -> None:
        pass


def decide(slower: bool, choice: Autotuner, kind: str) -> list[bool]:
    """The variants of the first runs, where the overlapped one is slower or not."""
    variants = []
    for _ in range(2 * RUNS + 3):
        overlap = choice.overlap(kind)
        variants.append(overlap)
        with choice.measuring(kind, overlap, lambda: 4):
            pass
        if choice._measured[kind].seconds[overlap]:
            choice._measured[kind].seconds[overlap][-1] = 2.0 if overlap is slower else 1.0
    return variants


@pytest.mark.parametrize("slower", [True, False])
def test_runs_take_turns_and_then_have_the_variant_that_was_faster(slower):
    def stage(end: InMemoryTransport) -> list[bool]:
        return decide(slower, Autotuner("auto", end), "kind")

    for variants in run_threads(2, stage):
        assert sorted(variants[: 2 * RUNS]) == [False] * RUNS + [True] * RUNS
        assert variants[2 * RUNS :] == [not slower] * 3


@pytest.mark.parametrize("overlap", [True, False, "auto"])
def test_the_variant_that_is_asked_for_runs_on_all_stages(overlap):
    seen = Seen()
    data = batches([2, 2, 2])
    over_stages(2, lambda ev: eval_batch(ev, data), overlap=overlap, listeners=[seen])
    assert ({SendActivation, RecvActivation} <= seen.kinds) is (overlap is False)
    assert ({PostSendActivation, PostRecvActivation} <= seen.kinds) is (overlap is not False)


def test_measuring_runs_no_layer_more_often_than_the_data_asks():
    class Counts(torch.nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x

    made: list[Counts] = []

    def layers() -> list[torch.nn.Module]:
        made.append(Counts())
        torch.manual_seed(0)
        return [torch.nn.Linear(4, 6), made[-1], torch.nn.Linear(6, 6)]

    data = batches([2, 2, 2])

    def call(ev: Any) -> list[Any]:
        return [eval_batch(ev, data).losses for _ in range(2 * RUNS + 2)]

    found = over_stages(2, call, overlap="auto", layers=layers)
    assert len({losses for stage in found for losses in stage}) == 1
    assert sorted(counts.calls for counts in made) == [0, 3 * (2 * RUNS + 2)]


def test_what_is_no_variant_is_refused():
    def stage(end: InMemoryTransport) -> None:
        Autotuner("fast", end)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="overlap is 'fast', needed True, False or 'auto'"):
        run_threads(1, stage)


def test_one_stage_has_nothing_to_measure():
    def stage(end: InMemoryTransport) -> bool:
        choice = Autotuner("auto", end)
        return choice.overlap("kind") and not choice._measured

    assert run_threads(1, stage) == [True]
