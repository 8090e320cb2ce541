"""Inputs as keyword arguments of the first layer, and masks that travel with the activation."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator, RemoteError
from tests.support.models_for_tests import over_stages


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.table(input_ids), mask.bool()


class Pool(nn.Module):
    def forward(self, activation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        hidden, mask = activation
        return (hidden * mask[..., None]).sum(dim=1)


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Embed(), Pool(), nn.Linear(4, 3)]


IDS = torch.tensor([[1, 2, 3], [4, 5, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
LABELS = torch.tensor([0, 2])


def expected(**inputs: torch.Tensor) -> torch.Tensor:
    embed, pool, linear = layers()
    with torch.no_grad():
        return linear(pool(embed(**inputs)))


class Encoding(UserDict):
    """A mapping that is no dict, like the batches of tokenizers."""


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    "item",
    [
        ({"input_ids": IDS, "attention_mask": MASK}, LABELS),
        {"attention_mask": MASK, "labels": LABELS, "input_ids": IDS},
        Encoding(input_ids=IDS, attention_mask=MASK, labels=LABELS),
        (Encoding(input_ids=IDS, attention_mask=MASK), LABELS),
    ],
)
def test_mappings_become_keyword_arguments_of_the_first_layer(item, stages):
    def call(ev: Evaluator) -> Any:
        return ev.evaluate([item, {"input_ids": IDS, "labels": LABELS}], return_logits=True)

    *_, result = over_stages(
        stages,
        call,
        layers=layers,
        loss_fn=nn.functional.cross_entropy,
        keyword_inputs=True,
    )
    logits = [expected(input_ids=IDS, attention_mask=MASK), expected(input_ids=IDS)]
    assert all(map(torch.equal, result.logits, logits))
    losses = [float(nn.functional.cross_entropy(y, LABELS)) for y in logits]
    assert result.losses == tuple(losses)


def test_without_being_asked_a_mapping_is_one_argument():
    class First(nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return inputs["a"] + inputs["b"]

    item = ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, torch.zeros(2, 3))
    for result in over_stages(
        2, lambda ev: ev.evaluate([item]), layers=lambda: [First(), nn.Identity()]
    ):
        assert result.loss == 4.0


def test_inputs_that_are_no_mapping_are_named():
    def call(ev: Evaluator) -> None:
        with pytest.raises((RemoteError, ValueError), match="the inputs of item 0 are a Tensor"):
            ev.evaluate([(IDS, LABELS)])

    over_stages(2, call, layers=layers, keyword_inputs=True)
