"""One process computes where the stages do."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from runtime.language.perplexity import summary
from runtime.language.perplexity.reference import reference

DEVICE = torch.device("meta")


class OnDevice(nn.Module):
    """Refuses what is elsewhere; its logits are numbers all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache
        assert input_ids.device == self.weight.device == DEVICE
        return SimpleNamespace(logits=torch.zeros(2))


def loss_fn(_: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    assert labels.device == DEVICE
    return torch.tensor(2.0)


DATA = [(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))]


class InPieces:
    """A loss of two nats."""

    total = 2.0

    def __init__(self, model: OnDevice) -> None:
        assert model.weight.device == DEVICE

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss_fn(logits, labels)


class Windows(list[Any]):
    tokens = 1


def test_the_reference_is_computed_on_the_device_of_the_stages():
    found = reference(OnDevice(), DATA, loss_fn, lambda _: 1.0, DEVICE)
    assert found.loss == 2.0
    assert len(found.digests) == 1


def test_the_verification_is_made_on_the_device_of_the_stage(monkeypatch):
    monkeypatch.setattr(summary, "load_causal_lm", lambda *_: OnDevice())
    monkeypatch.setattr(summary, "LossInPieces", InPieces)
    monkeypatch.setattr(summary, "count_tokens", lambda _: 1.0)
    windows: Any = Windows(DATA)
    expected = reference(OnDevice(), DATA, loss_fn, lambda _: 1.0, DEVICE).digests
    files: Any = None
    finished: Any = SimpleNamespace(windows=windows, total=2.0, digests=expected)
    found = summary.verification_of(files, torch.float32, finished, DEVICE)
    assert found.passed
    with pytest.raises(AssertionError):
        reference(OnDevice(), DATA, loss_fn, lambda _: 1.0)
    finished.total = math.nextafter(2.0, 3.0)
    assert not summary.verification_of(files, torch.float32, finished, DEVICE).passed
