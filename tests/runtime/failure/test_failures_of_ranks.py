"""Where ranks hold several stages, failures name the rank and the stage."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import schedcc
from runtime import AgreementError, DifferentDataError, Evaluator, NonFiniteError, RemoteError
from runtime.failure.errors import StalledError
from runtime.testing import InMemoryTransport, run_threads
from tests.support.models_for_tests import batches, mlp, over_stages

DATA = batches([2, 1, 3, 2, 2])
INTERLEAVED: dict[str, Any] = {
    "schedule": "interleaved",
    "stages": 4,
    "timeout": 20.0,
    "network": {"queue": "channel"},
}


class Fails(nn.Module):
    """Does something to the micro-batch of three rows."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) if len(x) == 3 else x


def layers(at: int, act: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], list[nn.Module]]:
    """Eight layers, two on each stage."""

    def build() -> list[nn.Module]:
        found = mlp(8)
        found[at] = Fails(act)
        return found

    return build


def raises(_: torch.Tensor) -> torch.Tensor:
    raise ArithmeticError("not today")


@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_names_the_rank_and_the_stage_and_the_evaluator_goes_on(overlap):
    def call(ev: Evaluator) -> str:
        with pytest.raises((RemoteError, ArithmeticError)) as caught:
            ev.evaluate(iter(DATA))
        assert ev.evaluate(iter(DATA[:2])).micro_batches == 2
        return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])

    here = layers(6, raises)  # stage 3, which is on rank 1
    remote, origin = over_stages(2, call, layers=here, overlap=overlap, **INTERLEAVED)
    assert remote.startswith("rank 1 (stages 1 and 3) failed at step ")
    for told in (remote.splitlines()[0], origin):
        assert "ForwardPass(stage=3, micro_batch=2" in told
    assert "ArithmeticError: not today" in remote
    assert "at rank 1, step" in origin


def test_a_stall_says_what_each_rank_is_at():
    release = threading.Event()

    def waits(x: torch.Tensor) -> torch.Tensor:
        release.wait(60)
        return x

    def call(ev: Evaluator) -> str:
        with pytest.raises(StalledError) as caught:
            ev.evaluate(iter(DATA))
        release.set()
        return str(caught.value)

    def let_go(ev: Evaluator) -> str:
        try:
            return call(ev)
        finally:
            release.set()

    options = INTERLEAVED | {"timeout": 1.5}
    for text in over_stages(2, let_go, layers=layers(4, waits), **options):
        assert "rank 0 (stages 0 and 2) did not finish what it was at" in text
        assert "ForwardPass(stage=2, micro_batch=2" in text
        assert "waits for stage 2" in text or "waits for stage 0" in text


def test_different_data_and_data_of_another_length_name_the_ranks():
    def shuffled(ev: Evaluator) -> str:
        with pytest.raises(DifferentDataError) as caught:
            ev.eval_batch(iter(DATA if ev.is_first else DATA[::-1]), num_micro_batches=5)
        return str(caught.value)

    for text in over_stages(2, shuffled, layers=lambda: mlp(8), **INTERLEAVED):
        assert text.startswith("ranks 0 and 1 read different inputs as micro-batch 0")

    def shorter(ev: Evaluator) -> str:
        with pytest.raises(AgreementError) as caught:
            ev.evaluate(iter(DATA if ev.is_first else DATA[:3]))
        return str(caught.value)

    for text in over_stages(2, shorter, layers=lambda: mlp(8), **INTERLEAVED):
        assert text == "number of micro-batches differs: 5 on rank 0, 3 on rank 1"


@pytest.mark.parametrize("at", range(1, 8))
def test_a_loss_that_is_not_finite_names_the_stage_where_it_began(at):
    def call(ev: Evaluator) -> str:
        with pytest.raises(NonFiniteError) as caught:
            ev.evaluate(iter(DATA))
        return str(caught.value)

    spoils = layers(at, lambda x: x * float("nan"))
    first, stop = at // 2 * 2, at // 2 * 2 + 1
    for text in over_stages(2, call, layers=spoils, check_finite=True, **INTERLEAVED):
        assert text.startswith("the loss of micro-batch 2 is not finite: NaN first appears in the ")
        assert f"of stage {at // 2} (layers {first} to {stop})" in text


def test_an_unsound_plan_is_refused_with_its_findings_on_every_rank():
    plan = schedcc.compile_pipeline(3, 4, schedule="interleaved", ranks=2)
    first, second = plan.programs
    last = second.model_copy(update={"steps": second.steps[:-1]})
    broken = plan.model_copy(update={"programs": (first, last)})

    def rank(end: InMemoryTransport) -> str:
        with pytest.raises(schedcc.UnsoundPlanError) as caught:
            Evaluator(built[end.rank], plan=broken, transport=end)
        return str(caught.value)

    built = [mlp(8), mlp(8)]
    told = run_threads(2, rank, queue="channel")
    assert len(set(told)) == 1
    assert "coverage: rank 1, stage 3: micro-batch 2 never forwarded" in told[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stages": 3}, "stages is 3, but the plan is for 4"),
        ({"ranks": 3}, "the plan is for 2 ranks, but there are 3"),
        ({"count": 4}, "num_micro_batches is 4, but the plan is for 3: needed at most 3, or eval"),
    ],
)
def test_a_plan_for_other_numbers_is_refused_in_a_sentence_that_says_what_fits(options, sentence):
    plan = schedcc.compile_pipeline(3, 4, schedule="interleaved", ranks=2)
    given = {"stages": options["stages"]} if "stages" in options else {}

    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(DATA), num_micro_batches=options.get("count", 3))

    with pytest.raises(ValueError, match=sentence):
        over_stages(
            options.get("ranks", 2),
            call,
            plan=plan,
            network={"queue": "channel"},
            layers=lambda: mlp(8),
            **given,
        )
