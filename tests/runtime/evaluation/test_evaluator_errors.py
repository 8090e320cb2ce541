"""What does not fit together is one clear error on every stage, before the first transfer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from runtime import AgreementError, DataError, Evaluator, PartitionError, RemoteError
from schedcc import ScheduleError
from tests.support.models_for_tests import Data, batches, mlp, over_stages

DATA = batches([2, 2, 2, 2])


def errors(stages: int, call: Any, **options: Any) -> list[Exception | None]:
    """The error that `call(evaluator)` raises on each stage."""

    def caught(evaluator: Evaluator) -> Exception | None:
        try:
            call(evaluator)
        except Exception as error:
            return error
        return None

    return over_stages(stages, caught, **options)


def test_data_that_ends_early_is_reported_everywhere_with_both_lengths():
    for short_stage in (0, 2):

        def call(ev: Evaluator, short: int = short_stage) -> None:
            data = DATA[:3] if ev.stage_id == short else DATA
            ev.eval_batch(iter(data), num_micro_batches=4)

        for error in errors(3, call):
            assert isinstance(error, AgreementError)
            expected = f"the data of stage {short_stage} ended after 3 micro-batches, needed 4"
            assert str(error) == expected


def test_after_an_error_before_the_first_transfer_the_evaluator_still_works():
    def call(ev: Evaluator) -> float | None:
        with pytest.raises(AgreementError):
            ev.eval_batch(iter(DATA), num_micro_batches=5)
        return ev.eval_batch(iter(DATA), num_micro_batches=4).loss

    losses = over_stages(2, call)
    assert losses[0] == losses[1]
    assert losses[0] is not None


def test_stages_that_ask_for_different_numbers_are_told():
    for error in errors(2, lambda ev: ev.eval_batch(iter(DATA), num_micro_batches=2 + ev.stage_id)):
        assert isinstance(error, AgreementError)
        assert str(error) == "num_micro_batches differs: 2 on stage 0, 3 on stage 1"


def test_stages_that_want_different_outcomes_are_told():
    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(DATA), return_logits=ev.stage_id == 1, num_micro_batches=2)

    for error in errors(2, call):
        assert isinstance(error, AgreementError)
        assert "wanted outcome differs" in str(error)


def test_stages_that_divide_the_layers_differently_are_told():
    from runtime.testing import run_threads

    def stage(end: Any) -> str:
        boundaries = [0, 2, 6] if end.rank == 0 else [0, 3, 6]
        evaluator = Evaluator(
            mlp(), loss_fn=nn.functional.mse_loss, partition=boundaries, transport=end
        )
        with pytest.raises(AgreementError) as caught:
            evaluator.eval_batch(iter(DATA), num_micro_batches=4)
        return str(caught.value)

    expected = "partition of the layers differs: (0, 2, 6) on stage 0, (0, 3, 6) on stage 1"
    assert run_threads(2, stage) == [expected] * 2


def broken_data() -> Iterator[Any]:
    yield DATA[0]
    raise LookupError("disk gone")


def test_an_iterator_that_fails_keeps_its_error_and_tells_the_others():
    def call(ev: Evaluator) -> None:
        ev.eval_batch(broken_data() if ev.is_last else iter(DATA), num_micro_batches=4)

    first, middle, last = errors(3, call)
    assert isinstance(last, LookupError)
    for error in (first, middle):
        assert isinstance(error, RemoteError)
        assert "stage 2 failed at the fetching of micro-batches" in str(error)
        assert "LookupError: disk gone" in str(error)


def test_missing_data_a_missing_loss_and_items_that_are_no_pairs_are_named():
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (None, {}, "stage 0 reads micro-batches, but its data is None"),
        ([torch.zeros(2)] * 4, {}, "item 0 of the data is a Tensor, needed a pair"),
        ([(1, 2, 3)] * 4, {}, "item 0 of the data is a tuple of 3, needed a pair"),
        (DATA, {"loss_fn": None}, "compute_loss is True, but the evaluator has no loss_fn"),
    ]
    for data, options, message in cases:
        (error,) = errors(1, lambda ev, d=data: ev.eval_batch(d, num_micro_batches=4), **options)
        assert isinstance(error, DataError)
        assert message in str(error)


def test_a_missing_loss_and_logits_for_nobody_are_refused_with_the_way_out():
    evaluator = Evaluator(mlp(), micro_batches=4)
    with pytest.raises(DataError, match=r"needed one of them, or compute_loss=False$"):
        evaluator.evaluate(DATA)
    assert evaluator.evaluate(DATA, compute_loss=False).micro_batches == 4
    for option in ({"logits_to": "all"}, {"logits_to": "first"}, {"logits_device": "cpu"}):
        ((name, value),) = option.items()
        for call in (evaluator.evaluate, evaluator.eval_batch):
            with pytest.raises(ScheduleError) as caught:
                call(DATA, compute_loss=False, **option)
            assert str(caught.value) == (
                f"{name} is {value!r}, but nobody gets logits: needed return_logits=True or an "
                "on_logits"
            )


def test_a_layer_that_fails_at_once_is_an_error_everywhere():
    class Fails(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("no forward today")

    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(DATA), num_micro_batches=4)

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Linear(4, 6), Fails(), nn.Linear(6, 6), nn.Linear(6, 6)]

    for stage_id, error in enumerate(errors(4, call, layers=layers)):
        if stage_id == 1:
            assert isinstance(error, ArithmeticError)
            note = "at stage 1, step 1: ForwardPass(stage=1, micro_batch=0, buffer=0)"
            assert error.__notes__ == [note]
        else:
            assert isinstance(error, RemoteError)
            assert "stage 1 failed at step 1: ForwardPass(stage=1, micro_batch=0, " in str(error)
            assert "ArithmeticError: no forward today" in str(error)


def test_after_a_failure_all_stages_know_the_same_shapes():
    class FailsOnce(nn.Module):
        failed = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.failed:
                self.failed = True
                raise ArithmeticError("out of order")
            return x

    data = batches([2, 3, 2, 1])

    def call(ev: Evaluator) -> float | None:
        with pytest.raises(ArithmeticError if ev.stage_id == 1 else RemoteError):
            ev.eval_batch(iter(data), num_micro_batches=4)
        return ev.eval_batch(iter(data), num_micro_batches=4).loss

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Linear(4, 6), FailsOnce(), nn.Linear(6, 6), nn.Linear(6, 6)]

    losses = over_stages(4, call, layers=layers)
    assert len(set(losses)) == 1


def test_a_layer_that_fails_during_the_run_is_raised_with_its_place():
    class FailsLater(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(x.sum()) == 0:
                raise ArithmeticError("zeros")
            return x

    data: Data = [(torch.ones(2, 6), torch.ones(2, 6)) for _ in range(4)]
    data[2] = (torch.zeros(2, 6), torch.zeros(2, 6))

    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(data), num_micro_batches=4)

    def layers() -> list[nn.Module]:
        return [nn.Identity(), FailsLater(), nn.Identity()]

    found = errors(3, call, layers=layers)
    assert all(error is not None for error in found)
    origin = found[1]
    assert isinstance(origin, ArithmeticError)
    note = "at stage 1, step 3: ForwardPass(stage=1, micro_batch=2, buffer=0)"
    assert origin.__notes__ == [note]


def test_an_output_that_changes_shape_behind_the_agreement_is_refused():
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x if self.calls < 3 else torch.cat([x, x])

    def call(ev: Evaluator) -> None:
        ev.eval_batch(iter(DATA), num_micro_batches=4)

    found = errors(2, call, layers=lambda: [Grows(), *mlp(1)])
    expected = "leaves the stage as float32[4, 4], but float32[2, 4] was agreed on with stage 1"
    assert expected in str(found[0])


def test_a_loss_that_is_no_scalar_is_named():
    (error,) = errors(
        1,
        lambda ev: ev.eval_batch(iter(DATA), num_micro_batches=4),
        loss_fn=lambda output, label: output - label,
    )
    assert str(error) == "loss_fn returned float32 [2, 6], needed real scalars"


def test_numbers_out_of_range_are_refused():
    evaluator = Evaluator(mlp(), loss_fn=nn.functional.mse_loss)
    with pytest.raises(ScheduleError, match="num_micro_batches is 0, needed an integer of at"):
        evaluator.eval_batch(iter(DATA), num_micro_batches=0)
    with pytest.raises(DataError, match="num_micro_batches is None, and the evaluator has no"):
        evaluator.eval_batch(iter(DATA))
    with pytest.raises(ScheduleError, match="reduce_output is 'max', needed 'avg', 'sum', 'mean"):
        evaluator.eval_batch(iter(DATA), num_micro_batches=4, reduce_output="max")
    with pytest.raises(DataError, match="the data holds no micro-batch"):
        evaluator.evaluate([])
    with pytest.raises(AgreementError, match=r"stages is 2, but torch\.distributed is not init"):
        Evaluator(mlp(), stages=2)


def test_more_stages_than_processes_or_layers_are_refused():
    with pytest.raises(AgreementError, match="stages is 3, but 2 processes are connected"):
        over_stages(2, lambda ev: ev, stages=3)
    with pytest.raises(PartitionError, match="4 stages for 3 layers"):
        over_stages(4, lambda ev: ev, layers=lambda: mlp(3))
