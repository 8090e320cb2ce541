"""The interpreter does what the plan says, and gives what one process gives."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import schedcc
from runtime.execution.buffers import BufferPool
from runtime.execution.forward import LastStageForward, StageForward
from runtime.execution.interpreter import Interpreter, Work
from runtime.execution.program import Program
from runtime.execution.transfers import Transfers
from runtime.outputs.logits import Logits
from runtime.outputs.losses import Losses
from runtime.outputs.metrics import Metrics
from runtime.outputs.options import EvalOptions
from runtime.outputs.results import EvalResult, Results, eval_result
from runtime.outputs.values import Measure
from runtime.tensors.ownership import Owner
from runtime.testing import InMemoryTransport, run_threads
from schedcc.testing.mutations import with_epilogue
from schedcc.testing.plans import pipeline
from schedcc.testing.strategies import at_corners, sizes
from schemas import (
    PipelinePlan,
    ReduceLoss,
    StagePlan,
)
from tests.support.models_for_tests import Data, batches, mlp, one_process, stream_of


def results_of(end: InMemoryTransport, options: EvalOptions | None = None) -> Results:
    metrics = Metrics({}, end)
    return Results(Losses(end.device), metrics, Logits(options or EvalOptions(), end.device))


def execute(
    plan: PipelinePlan, stage_modules: list[nn.Module], data: Data, replicas: int = 1
) -> list[EvalResult]:
    """Run all stages of a plan in memory."""

    def stage(end: InMemoryTransport) -> EvalResult:
        here, last = end.rank, end.rank == end.ranks - 1
        results = results_of(end, EvalOptions(return_logits=True))
        module = stage_modules[here]
        mine = [data[m] for m in range(len(data))]
        if replicas > 1:  # each replica weighs its losses differently: shards of unequal size
            mine = [
                (x[: 1 + end.global_rank // end.ranks], y[: 1 + end.global_rank // end.ranks])
                for x, y in mine
            ]
        with torch.no_grad():
            run_stage(plan.stage(here), end, module, mine, results, is_last=last)
        return eval_result(len(data), results)

    return run_threads(plan.stages, stage, replicas=replicas, timeout=30)


def run_stage(
    plan: StagePlan,
    end: InMemoryTransport,
    module: nn.Module,
    data: Data,
    results: Results,
    *,
    is_last: bool,
) -> None:
    buffers, stream = BufferPool(end.receive_memory), stream_of(data, end)
    transfers = Transfers(end, buffers, stream, plan.placement)
    measure, here = Measure(nn.functional.mse_loss, {}), plan.stage_id
    last = LastStageForward(module, results, lambda _, label: len(label), measure=measure)
    Interpreter(Program.of(plan), end, buffers).run(
        Work(
            forwards={here: last if is_last else StageForward(here, module, transfers)},
            stream=stream,
            transfers=transfers,
            results=results,
            own=Owner([module], buffers.memory.ours).own,
        )
    )


def stages_of(layers: list[nn.Module], stages: int) -> list[nn.Module]:
    size = len(layers) // stages
    cuts = [*(size * s for s in range(stages)), len(layers)]
    return [nn.Sequential(*layers[a:b]) for a, b in pairwise(cuts)]


@given(size=sizes(6, 5), seed=st.integers(0, 9))
@at_corners(seed=0)
@settings(max_examples=25)
def test_compiled_plans_give_what_one_process_gives(size, seed):
    micro_batches, stages = size
    data = batches([1 + (m * 7 + seed) % 4 for m in range(micro_batches)], seed)
    plan = schedcc.compile_pipeline(
        micro_batches, stages, outcome=schedcc.Outcome(return_logits=True)
    )
    results = execute(plan, stages_of(mlp(10), stages), data)

    logits, losses = one_process(mlp(10), data)
    found = results[-1]
    assert all(torch.equal(a, b) for a, b in zip(found.logits, logits, strict=True))
    weights = [len(inputs) for inputs, _ in data]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    for result in results:
        assert result.losses == tuple(losses)
        assert result.loss == pytest.approx(expected, rel=1e-12)


def overlapped_plan() -> PipelinePlan:
    """M = 3, S = 3, by hand: receives are posted a step ahead, sends are waited for late."""

    plan = pipeline(
        "L0 F0 s>0 | L1 F1 s>1      | s.0 L2 F2 s>2  | s.1 s.2        |",
        "r<0       | r.0 r<1 F0 s>0 | r.1 r<2 F1 s>1 | r.2 s.0 F2 s>2 | s.1 s.2",
        "          | r<0            | L0 r.0 r<1 F0  | L1 r.1 r<2 F1  | L2 r.2 F2",
        micro_batches=3,
    )
    return with_epilogue(plan, plan.programs[-1], [ReduceLoss()])


def test_an_overlapped_plan_written_by_hand_is_sound_and_runs():
    plan = overlapped_plan()
    assert schedcc.check(plan).findings == ()
    data = batches([2, 4, 3])
    results = execute(plan, stages_of(mlp(6), 3), data)
    _, losses = one_process(mlp(6), data)
    assert results[-1].losses == tuple(losses)
    assert results[0].losses is None


def test_a_stage_that_passes_its_input_through_does_not_see_it_overwritten():
    layers = [nn.Linear(4, 6), nn.Identity(), nn.Identity()]
    data = batches([2] * 6)
    plan = schedcc.compile_pipeline(6, 3, outcome=schedcc.Outcome(return_logits=True))
    results = execute(plan, stages_of(layers, 3), data)
    logits, _ = one_process(layers, data)
    assert all(torch.equal(a, b) for a, b in zip(results[-1].logits, logits, strict=True))


def test_replicas_are_combined_by_weight():
    data = batches([2, 2, 2])
    outcome = schedcc.Outcome(replicas=2)
    plan = schedcc.compile_pipeline(3, 2, outcome=outcome)
    results = execute(plan, stages_of(mlp(4), 2), data, replicas=2)
    shards = [[(x[:n], y[:n]) for x, y in data] for n in (1, 2)]
    sums = [sum(one_process(mlp(4), shard)[1]) * n for n, shard in enumerate(shards, start=1)]
    for result in results:
        assert result.loss == pytest.approx(sum(sums) / (3 * 1 + 3 * 2), rel=1e-12)


def test_an_error_says_where_in_the_plan_it_happened():
    class Fragile(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == 3:
                raise ArithmeticError("three rows")
            return x

    plan = schedcc.compile_pipeline(3, 1)
    modules: list[nn.Module] = [Fragile()]
    data = batches([1, 2, 2])
    data[2] = (torch.zeros(3, 6), torch.zeros(3, 6))
    data = [(y, y) for _, y in data]

    def stage(end: InMemoryTransport) -> None:
        results = results_of(end)
        run_stage(plan.stage(0), end, modules[0], data, results, is_last=True)

    with pytest.raises(ArithmeticError, match="three rows") as caught:
        run_threads(1, stage)
    assert caught.value.__notes__ == [
        "at stage 0, step 2: ForwardPass(stage=0, micro_batch=2, buffer=0)"
    ]
