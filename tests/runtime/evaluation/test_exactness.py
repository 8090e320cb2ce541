"""Whatever is drawn, the pipeline gives the bits of one process: n samples in, n rows out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from runtime import EvalResult, Evaluator
from tests.support.models_for_tests import over_stages

WIDTH, CLASSES = 4, 3


class Embed(nn.Module):
    """Ids `[batch, sequence]` to an activation of some structure; id 0 is padding."""

    def __init__(self, structure: str) -> None:
        super().__init__()
        self.table = nn.Embedding(7, WIDTH)
        self.structure = structure

    def forward(self, ids: torch.Tensor) -> Any:
        return shaped(self.structure, self.table(ids), ids != 0)


class Mix(nn.Module):
    """Mixes along the sequence where the mask allows it; passes the structure on."""

    def __init__(self, structure: str) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.structure = structure

    def forward(self, activation: Any) -> Any:
        hidden, mask = parts(self.structure, activation)
        mixed = (hidden * mask[..., None]).cumsum(dim=1)
        return shaped(self.structure, torch.tanh(self.linear(mixed)), mask)


class Head(nn.Module):
    def __init__(self, structure: str) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, CLASSES)
        self.structure = structure

    def forward(self, activation: Any) -> torch.Tensor:
        hidden, mask = parts(self.structure, activation)
        return self.linear(hidden) * mask[..., None]


def shaped(structure: str, hidden: torch.Tensor, mask: torch.Tensor) -> Any:
    match structure:
        case "tensor":
            return torch.cat([hidden, mask[..., None].float()], dim=-1)
        case "transposed":
            return torch.cat([hidden, mask[..., None].float()], dim=-1).transpose(0, 1)
        case "tuple":
            return hidden, mask
        case _:
            lengths = mask.sum(dim=1, dtype=torch.int16)
            return {"hidden": [hidden], "mask": (mask, lengths), "half": hidden.to(torch.bfloat16)}


def parts(structure: str, activation: Any) -> tuple[torch.Tensor, torch.Tensor]:
    match structure:
        case "tensor":
            return activation[..., :-1], activation[..., -1] > 0
        case "transposed":
            return parts("tensor", activation.transpose(0, 1))
        case "tuple":
            return activation
        case _:
            (hidden,), (mask, lengths) = activation["hidden"], activation["mask"]
            assert torch.equal(lengths, mask.sum(dim=1, dtype=torch.int16))
            return hidden + activation["half"].float(), mask


def model(structure: str, blocks: int, seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [Embed(structure), *(Mix(structure) for _ in range(blocks)), Head(structure)]


def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(-1) == labels).float().mean()


def micro_batches(shapes: list[tuple[int, int]], seed: int) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(seed)

    def ids(shape: tuple[int, int], stop: int) -> torch.Tensor:
        return torch.randint(0, stop, shape, generator=generator)

    return [(ids(shape, 7), ids(shape, CLASSES)) for shape in shapes]


@dataclass(frozen=True)
class Case:
    """One evaluation."""

    stages: int
    shapes: tuple[tuple[tuple[int, int], ...], ...]
    """Micro-batch size and sequence length of each micro-batch of each replica."""
    structure: str
    overlap: bool
    reduction: str | None
    tokens: bool
    """Whether micro-batches are weighed by tokens, or by samples."""
    logits_to: str
    whole: bool
    """Whether `evaluate` is called, or `eval_batch`."""
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    whole = draw(st.booleans())
    shape = st.tuples(st.integers(1, 3), st.integers(1, 4))
    replicas = draw(st.integers(1, 2))
    counts = [draw(st.integers(1, 5))] * replicas
    if whole:  # a replica may have more data than another, or none
        counts = [counts[0], *(draw(st.integers(0, 5)) for _ in range(replicas - 1))]
    shapes = (draw(st.lists(shape, min_size=n, max_size=n).map(tuple)) for n in counts)
    return Case(
        stages=draw(st.integers(1, 4)),
        shapes=tuple(shapes),
        structure=draw(st.sampled_from(["tensor", "transposed", "tuple", "dict"])),
        overlap=draw(st.booleans()),
        reduction=draw(st.sampled_from(["avg", "sum", "mean_of_means", None])),
        tokens=draw(st.booleans()),
        logits_to=draw(st.sampled_from(["last", "first", "all"])),
        whole=whole,
        seed=draw(st.integers(0, 9)),
    )


def reduced(case: Case, values: list[float], weights: list[float]) -> float | None:
    match case.reduction:
        case "avg":
            products = (w * v for w, v in zip(weights, values, strict=True))
            return math.fsum(products) / math.fsum(weights)
        case "sum":
            return math.fsum(values)
        case "mean_of_means":
            return math.fsum(values) / len(values)
    return None


def corner(stages: int, *shapes: tuple[tuple[int, int], ...]) -> Case:
    options = {"overlap": True, "reduction": "avg", "tokens": True, "logits_to": "all"}
    return Case(stages, shapes, "dict", **options, whole=True, seed=0)  # type: ignore[arg-type]


@given(cases())
@example(corner(1, ((2, 3),)))
@example(corner(4, ((2, 3),)))
@example(corner(4, ((2, 3), (1, 4))))
@example(corner(2, ((2, 3), (1, 4), (3, 1)), ()))
@settings(max_examples=60)
def test_logits_and_losses_are_those_of_one_process(case):
    data = [micro_batches(list(own), case.seed + r) for r, own in enumerate(case.shapes)]
    weight_fn: Callable[[Any], float] = torch.numel if case.tokens else len
    options = {"reduce_output": case.reduction, "return_logits": True, "logits_to": case.logits_to}

    def call(ev: Evaluator, replica: int = 0) -> EvalResult:
        own = iter(data[replica])
        if case.whole:
            return ev.evaluate(own, **options)
        return ev.eval_batch(own, **options, num_micro_batches=len(data[replica]))

    results = over_stages(
        case.stages,
        call,
        layers=lambda: model(case.structure, 2, case.seed),
        replicas=len(data),
        loss_fn=loss_fn,
        metrics={"hits": hits},
        weight_fn=weight_fn,
        overlap=case.overlap,
    )

    whole = nn.Sequential(*model(case.structure, 2, case.seed)).eval()
    with torch.no_grad():
        logits = [[whole(x) for x, _ in shard] for shard in data]
    pairs = [
        list(zip(ys, (t for _, t in shard), strict=True))
        for ys, shard in zip(logits, data, strict=True)
    ]
    losses = [[float(loss_fn(*pair)) for pair in shard] for shard in pairs]
    weights = [[float(weight_fn(t)) for _, t in shard] for shard in pairs]
    everything = [loss for own in losses for loss in own]
    all_weights = [weight for own in weights for weight in own]
    shares = [float(hits(*pair)) for shard in pairs for pair in shard]

    receivers = {"last": {case.stages - 1}, "first": {0}, "all": set(range(case.stages))}
    for rank, result in enumerate(results):
        replica, stage_id = divmod(rank, case.stages)
        assert result.loss == reduced(case, everything, all_weights)
        assert result.metrics.get("hits") == reduced(case, shares, all_weights)
        assert result.losses == tuple(losses[replica])
        assert result.weights == tuple(weights[replica])
        if stage_id not in receivers[case.logits_to]:
            assert result.logits is None
            continue
        assert len(result.logits) == len(logits[replica])
        assert all(map(torch.equal, result.logits, logits[replica]))
        assert sum(map(len, result.logits)) == sum(n for n, _ in case.shapes[replica])
