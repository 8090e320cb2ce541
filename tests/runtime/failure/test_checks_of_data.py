"""Stages that read different data, and losses that are not finite, are told with their place."""

from typing import Any

import pytest
import torch
from torch import nn

from runtime import (
    DifferentDataError,
    Evaluator,
    NonFiniteError,
)
from runtime.data.fingerprint import fingerprint, require_same_data
from runtime.testing import run_threads
from tests.support.models_for_tests import batches, mlp, over_stages

DATA = batches([2, 3, 1, 2])


def test_fingerprints_tell_data_apart_wherever_it_differs():
    base = torch.zeros(64, 512, dtype=torch.int64)
    assert fingerprint(base) == fingerprint(base.clone())
    assert fingerprint(None) is None
    shuffled = torch.randperm(64 * 512).reshape(64, 512)
    assert fingerprint(shuffled) != fingerprint(shuffled.roll(1, dims=0))
    assert fingerprint(shuffled) != fingerprint(shuffled.roll(1, dims=1))
    assert fingerprint(base) != fingerprint(base.int())
    assert fingerprint({"a": base}) != fingerprint({"b": base})
    assert fingerprint(("x", 1)) != fingerprint(("x", 2))
    assert fingerprint(torch.ones(3).to(torch.float8_e4m3fn)) is not None
    assert fingerprint(torch.empty(0)) is not None
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))
    strided = torch.arange(12).reshape(3, 4).T
    assert fingerprint(strided) == fingerprint(strided.contiguous())


def test_stages_that_read_different_labels_are_told_which():
    with pytest.raises(DifferentDataError, match="stages 0 and 2 read different labels as micro-b"):
        require_same_data([[("a", "x"), ("b", "y")], [], [("a", "x"), ("b", "z")]])
    require_same_data([[("a", None)], [], [(None, "x")]])


def test_shuffled_loaders_are_an_error_that_can_be_switched_off():
    def data(ev: Evaluator) -> Any:
        return DATA if ev.is_first else DATA[::-1]

    def call(ev: Evaluator) -> str:
        with pytest.raises(DifferentDataError) as caught:
            ev.eval_batch(data(ev), num_micro_batches=4)
        return str(caught.value)

    assert set(over_stages(3, call)) == {
        "stages 0 and 2 read different inputs as micro-batch 0: do their loaders shuffle alike? "
        "(check_data=False leaves this comparison out)"
    }
    same = [(x, y) for x, y in zip([torch.ones(2, 4)] * 4, [torch.ones(2, 6)] * 4, strict=True)]

    def unchecked(ev: Evaluator) -> float | None:
        return ev.eval_batch(same if ev.is_first else same[::-1], num_micro_batches=4).loss

    assert len(set(over_stages(3, unchecked, check_data=False))) == 1


def test_what_a_stage_does_not_need_may_be_none():
    def call(ev: Evaluator) -> float | None:
        data = [(x, None) for x, _ in DATA] if ev.is_first else [(None, y) for _, y in DATA]
        return ev.eval_batch(data, num_micro_batches=4).loss

    losses = over_stages(2, call)
    assert losses[0] == losses[1]


class Spoils(nn.Module):
    """Makes the outputs of micro-batches of one size infinite, or NaN."""

    def __init__(self, rows: int, value: float) -> None:
        super().__init__()
        self.rows, self.value = rows, value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value if len(x) == self.rows else x


class Mask(nn.Module):
    """Adds a column of infinities, as attention masks have them, and takes it off again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.isinf().any():
            return x[:, :-1]
        return torch.cat([x, torch.full((len(x), 1), float("inf"))], dim=1)


def non_finite(layers: list[nn.Module], **options: Any) -> set[str]:
    def call(ev: Evaluator) -> str:
        with pytest.raises(NonFiniteError) as caught:
            ev.eval_batch(iter(DATA), num_micro_batches=4)
        assert ev.eval_batch(iter(DATA[:1]), num_micro_batches=1).loss is not None
        return str(caught.value)

    return set(over_stages(3, call, layers=lambda: layers, check_finite=True, **options))


def test_the_stage_where_a_loss_stopped_being_finite_is_named():
    def model(at: int, layer: nn.Module) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Linear(4, 6), *(nn.Linear(6, 6) for _ in range(5))]
        layers[at] = layer
        return layers

    nan, infinity = float("nan"), float("inf")
    for at, stage in ((1, 0), (2, 1), (5, 2)):
        layers = f"(layers {2 * stage} to {2 * stage + 1})"
        assert non_finite(model(at, Spoils(3, nan))) == {
            "the loss of micro-batch 1 is not finite: "
            f"NaN first appears in the output of stage {stage} {layers}"
        }
    assert non_finite(model(3, Spoils(3, infinity))) == {
        "the loss of micro-batch 1 is not finite: "
        "an infinity first appears in the output of stage 1 (layers 2 to 3)"
    }
    masked = [nn.Linear(4, 6), Mask(), Mask(), nn.Linear(6, 6), Spoils(3, nan), nn.Linear(6, 6)]
    assert non_finite(masked) == {
        "the loss of micro-batch 1 is not finite: "
        "NaN first appears in the output of stage 2 (layers 4 to 5)"
    }


def test_a_loss_function_or_the_data_may_be_the_cause():
    def loss(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(output, label) / (0.0 if len(label) == 1 else 1.0)

    assert non_finite(mlp(), loss_fn=loss) == {
        "the loss of micro-batch 2 is not finite: "
        "all stages' outputs are finite, the loss function makes it so"
    }
    data = [(x.clone(), y) for x, y in DATA]
    data[2][0][0, 0] = float("nan")

    def call(ev: Evaluator) -> None:
        ev.eval_batch(data, num_micro_batches=4)

    for stages in (1, 3):
        with pytest.raises(
            NonFiniteError, match=r"micro-batch 2 .* first appears in the inputs of"
        ):
            over_stages(stages, call, check_finite=True)


def test_a_finite_check_that_some_stages_leave_out_is_told():
    layers = [mlp(), mlp()]  # here: threads would draw from one generator at the same time

    def stage(end: Any) -> str:
        ev = Evaluator(layers[end.rank], loss_fn=nn.functional.mse_loss, transport=end,
                       check_finite=end.rank == 0)  # fmt: skip
        with pytest.raises(ValueError, match="check_finite differs") as caught:
            ev.eval_batch(iter(DATA), num_micro_batches=4)
        return str(caught.value)

    assert set(run_threads(2, stage)) == {"check_finite differs: True on stage 0, False on stage 1"}
