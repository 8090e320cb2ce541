"""The schedules with several stages on a rank that torch ships are read, checked, drawn and run."""

import csv

import pytest

from runtime import EvalResult, Evaluator
from schedcc import PipelinePlan, check
from schedcc.io.exchange import from_torch_csv
from tests.support.models_for_tests import batches, mlp, one_process, over_stages
from tests.support.torch_schedules import of_torch

NAMES = [
    "Interleaved1F1B",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
]


def read(directory, name: str, ranks: int, micro_batches: int, form: str) -> PipelinePlan:
    file = directory / f"{form}.csv"
    of_torch(name, ranks, micro_batches)._dump_csv(str(file), format=form)
    return from_torch_csv(file.read_text())


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (3, 6), (4, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_what_torch_writes_is_read_as_torch_lowers_it_and_is_sound(
    name, ranks, micro_batches, tmp_path
):
    plan = read(tmp_path, name, ranks, micro_batches, "compute_only")
    assert check(plan).ok
    assert plan == read(tmp_path, name, ranks, micro_batches, "compute_comms")
    rows = list(csv.reader((tmp_path / "compute_comms.csv").open()))
    for rank, row in enumerate(rows):
        named = {cell.split("F")[0] for cell in row if cell.split("F")[0].isdigit()}
        assert {plan.placement[int(stage)] for stage in named} == {rank}


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_writes_is_drawn(name, tmp_path, run):
    read(tmp_path, name, 2, 4, "compute_comms")
    done = run("show", tmp_path / "compute_comms.csv")
    assert done.status == 0
    assert "torch schedule: M = 4 micro-batches, S = 4 stages on R = 2 ranks" in done.out
    assert "L0 0F0" in done.out


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_writes_runs_here_with_the_losses_of_one_process(name, tmp_path):
    plan = read(tmp_path, name, 2, 4, "compute_comms")
    data = batches([2, 1, 3, 2])
    logits, losses = one_process(mlp(8), data)

    def call(ev: Evaluator) -> list[EvalResult]:
        whole = ev.eval_batch(iter(data), return_logits=True, num_micro_batches=4)
        return [whole, ev.evaluate(iter(data[:3]))]

    options = {"layers": lambda: mlp(8), "network": {"queue": "channel"}, "timeout": 20.0}
    for rank, (whole, three) in enumerate(over_stages(2, call, plan=plan, **options)):
        assert list(whole.losses) == losses
        assert list(three.losses) == losses[:3]
        assert (whole.logits is not None) == (rank == plan.placement[-1])
        assert all(map(lambda a, b: a.equal(b), whole.logits or (), logits))
