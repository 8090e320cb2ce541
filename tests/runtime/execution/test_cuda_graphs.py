"""Forwards that are captured and replayed, with a stand-in for the graph on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.device import DeviceError
from runtime.evaluation import forwards
from runtime.execution.cuda_graphs import MOST, CudaGraphError, GraphedLayers
from runtime.tensors.nested import flatten, transform
from runtime.testing import InMemoryTransport, run_threads
from tests.support.models_for_tests import batches, mlp

CPU = torch.device("cpu")


class Replayed:
    """A graph as CUDA's: the same function again, into the memory that it filled first."""

    def __init__(self, function: Callable[[], Any], output: Any) -> None:
        self._function, self._output = function, output

    def replay(self) -> None:
        for old, new in zip(flatten(self._output)[0], flatten(self._function())[0], strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)


def _garbage(leaf: Any) -> Any:
    return torch.full_like(leaf, 7) if isinstance(leaf, torch.Tensor) else leaf


class Capturing:
    """Captures on the CPU; what is computed meanwhile is not what a caller gets."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Replayed]:
        self.captured += 1
        output = transform(function(), _garbage)
        return output, Replayed(function, output)


def graphed(layers: nn.Module) -> tuple[GraphedLayers, Capturing]:
    capture = Capturing()
    return GraphedLayers(0, layers, CPU, capture), capture


def test_the_first_of_a_kind_is_computed_and_the_others_are_replayed():
    layers, capture = graphed(nn.Linear(4, 4))
    drawn = [torch.randn(2 + n % 2, 4) for n in range(8)]
    with torch.no_grad():
        found = [layers(x) for x in drawn]
        expected = [layers.layers(x) for x in drawn]
    assert capture.captured == 2, "one for each shape"
    assert all(map(torch.equal, found, expected)), "and no output is written to again"


class Nested(nn.Module):
    def forward(self, given: dict[str, Any]) -> dict[str, Any]:
        x = given["x"] * given["scale"]
        return {"x": x, "transposed": x.T, "given": given["scale"]}


def test_nested_inputs_and_plain_values_in_them():
    layers, capture = graphed(Nested())
    for scale in (2, 3, 2, 3, 2):
        x = torch.randn(2, 3)
        found = layers({"x": x, "scale": scale})
        assert torch.equal(found["x"], x * scale)
        assert torch.equal(found["transposed"], (x * scale).T)
        assert found["transposed"].stride() == (1, 3)
        assert found["given"] == scale
    assert capture.captured == 2


@pytest.mark.parametrize(
    "given",
    [
        lambda: (torch.randn(2), object()),
        lambda: (torch.randn(2).to_sparse(), 1),
        lambda: (torch.randn(2, device="meta"), 1),
    ],
)
def test_inputs_of_which_no_graph_can_be_made_go_through_the_layers(given):
    layers, capture = graphed(nn.Identity())
    for _ in range(3):
        pair = given()
        assert layers(pair) is pair
    assert capture.captured == 0


def test_kinds_beyond_a_number_are_not_captured():
    layers, capture = graphed(nn.Identity())
    for length in [*range(1, MOST + 4)] * 3:
        assert torch.equal(layers(torch.ones(length)), torch.ones(length))
    assert capture.captured == MOST


class LooksAtValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


def test_layers_that_cannot_be_captured_are_refused_by_stage():
    def capture(function: Callable[[], Any]) -> Any:
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    layers = GraphedLayers(3, LooksAtValues(), CPU, capture)
    layers(torch.ones(2))
    with pytest.raises(CudaGraphError) as caught:
        layers(torch.ones(2))
    assert str(caught.value) == (
        "the layers of stage 3 cannot be captured into a CUDA graph: operation not permitted when "
        "stream is capturing (layers that look at values on the host cannot; "
        "needed cuda_graphs=False)"
    )


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_an_evaluation_with_graphs_gives_what_one_without_gives(stages, monkeypatch):
    data = batches([2, 3] * 4)
    monkeypatch.setattr("runtime.evaluator.require_gpu", lambda _: None)
    monkeypatch.setattr(forwards, "capture_on", lambda _: Capturing())

    def evaluated(end: InMemoryTransport, built: list[Any], **options: Any) -> Any:
        layers = built[end.global_rank]
        evaluator = Evaluator(
            layers, loss_fn=nn.functional.mse_loss, partition="uniform", transport=end, **options
        )
        for _ in range(2):
            found = evaluator.evaluate(data, return_logits=True, logits_to="all")
            for parameter in evaluator.module.parameters():
                parameter.data = parameter.data * 1.5  # in other memory: graphs are made anew
        return found

    built = [[mlp(4) for _ in range(stages)] for _ in range(2)]  # before there are threads
    plain = run_threads(stages, lambda end: evaluated(end, built[0]))
    with_graphs = run_threads(stages, lambda end: evaluated(end, built[1], cuda_graphs=True))
    for one, other in zip(plain, with_graphs, strict=True):
        assert one.loss == other.loss
        assert all(map(torch.equal, one.logits, other.logits))


def test_a_cpu_has_no_graphs():
    with pytest.raises(DeviceError, match="cuda_graphs is True, but the device is cpu, needed a G"):
        Evaluator(mlp(2), loss_fn=nn.functional.mse_loss, cuda_graphs=True)
