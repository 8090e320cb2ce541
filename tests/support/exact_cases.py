"""Models and data that real users have, each with what makes its evaluation hard to get right.

A case is evaluated over stages and by a plain loop in one process, and the two have to be equal to
the last bit: the losses of all micro-batches, their average, and what the layers have become.
"""

from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime import Evaluator

WIDTH = 6


@dataclass(frozen=True)
class ExactCase:
    """Four layers, so that there are one to four stages, and data for them."""

    layers: Callable[[], list[nn.Module]]
    data: Callable[[], Iterable[Any]]
    loss_fn: Callable[[Any, Any], torch.Tensor] = nn.functional.mse_loss
    options: dict[str, Any] = field(default_factory=dict)
    metric: Callable[[], Any] | None = None
    """Makes a metric with a state."""
    kept: Callable[[nn.Module], Any] | None = None
    """What is left behind in a layer, to be compared too."""


@dataclass(frozen=True)
class Found:
    """What an evaluation gives."""

    losses: tuple[float, ...]
    metric: Any
    kept: dict[int, Any]
    """By layer."""


def one_process(case: ExactCase) -> Found:
    """A plain loop over the data."""
    layers = drawn(case)
    model, metric = nn.Sequential(*layers).eval(), case.metric() if case.metric else None
    losses = []
    with torch.no_grad():
        for inputs, label in case.data():
            output = model(inputs)
            losses.append(float(case.loss_fn(output, label)))
            if metric is not None:
                metric.update(output, label)
    return Found(tuple(losses), metric and metric.compute(), kept(case, enumerate(layers)))


def over_stages(case: ExactCase, layers: list[nn.Module], **options: Any) -> Found:
    """The same with an evaluator, on one of its stages."""
    metrics = {"state": case.metric()} if case.metric else None
    evaluator = Evaluator(
        layers,
        loss_fn=case.loss_fn,
        metrics=metrics,
        partition="uniform",
        **{"weight_fn": lambda _: 1.0, "timeout": 20.0} | case.options | options,
    )
    result = evaluator.evaluate(case.data() if evaluator.is_first or evaluator.is_last else None)
    assert result.losses is not None
    own = (
        numbered
        for stage, module in evaluator.modules.items()
        for numbered in enumerate(module, start=evaluator.boundaries[stage])
    )
    return Found(result.losses, result.metrics.get("state"), kept(case, own))


def drawn(case: ExactCase) -> list[nn.Module]:
    """The layers of a case, the same everywhere; not for threads, which share one generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.layers()


def kept(case: ExactCase, layers: Iterable[tuple[int, nn.Module]]) -> dict[int, Any]:
    """What the layers have become, in lists."""
    return {n: case.kept(layer) for n, layer in layers} if case.kept else {}


class Apply(nn.Module):
    """A layer without weights: a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def around(*middle: nn.Module) -> list[nn.Module]:
    """Layers between a first and a last linear one."""
    return [linear(), *middle, linear()]


def pairs(shape: tuple[int, ...] = (4, WIDTH), count: int = 5) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in range(count)
    ]


class Static(nn.Module):
    """Puts every output into the same memory, as an engine with a fixed output buffer."""

    def __init__(self, *, of_numpy: bool = False) -> None:
        super().__init__()
        self.of_numpy, self.out = of_numpy, np.empty(0, dtype=np.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.out.shape != x.shape:
            self.out = np.empty(x.shape, dtype=np.float32)
            self.buffer = torch.empty_like(x)
        if self.of_numpy:
            np.tanh(x.numpy(), out=self.out)
            return torch.from_numpy(self.out)
        return self.buffer.copy_(torch.tanh(x))


class KeepsInputs(nn.Module):
    """Keeps what it gets, as one does to extract features."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x, x[1:], x.view(-1).numpy()))
        return x


def features(layer: nn.Module) -> Any:
    if isinstance(layer, KeepsInputs):
        return [(a.tolist(), b.tolist(), c.tolist()) for a, b, c in layer.seen]
    return None


class KeepsOutputs:
    """A metric with a state that keeps what it is given."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []

    def update(self, output: torch.Tensor, _: torch.Tensor) -> None:
        self.outputs.append(output)

    def compute(self) -> float:
        return float(torch.stack(self.outputs).double().square().sum())

    def reset(self) -> None:
        self.outputs.clear()


class Recycling:
    """A loader that fills the same tensors for every item."""

    def __iter__(self) -> Iterator[Any]:
        x, y = torch.empty(4, WIDTH), torch.empty(4, WIDTH)
        array = np.empty((4, WIDTH), dtype=np.float32)
        for number, (a, b) in enumerate(pairs(count=7)):
            if number % 2:
                array[:] = a.numpy()
                yield torch.from_numpy(array), y.copy_(b)
            else:
                yield x.copy_(a), y.copy_(b)


class Counting(nn.Module):
    """Counts tokens by expert in every forward, and grows with the longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.register_buffer("tokens", torch.zeros(WIDTH))
        self.register_buffer("longest", torch.tensor(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tokens += torch.bincount(self.linear(x).argmax(-1).flatten(), minlength=WIDTH)
        if x.shape[1] > self.longest:
            self.longest.fill_(x.shape[1])
        return self.linear(x) / self.longest


def counts(layer: nn.Module) -> Any:
    return [buffer.tolist() for buffer in layer.buffers()]


def sequences() -> list[Any]:
    return [pairs((2, t, WIDTH), 1)[0] for t in (5, 6, 7, 5, 9, 3, 6, 5)]


class AddInPlace(nn.Module):
    """Takes `(hidden, residual)` and adds in place, as fused kernels do."""

    def forward(self, pair: Any) -> torch.Tensor:
        hidden, residual = pair
        residual += hidden
        return hidden * 1.0


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sliced": lambda h: h[:, :-1],
    "every second": lambda h: h[..., ::2],
    "expanded": lambda h: h[:, :1].expand_as(h),
    "offset": lambda h: h[:, 1:, 3:],
    "diagonal": lambda h: h.diagonal(dim1=1, dim2=2),
    "transposed": lambda h: h.transpose(1, 2),
    "conjugate": lambda h: torch.fft.fft(h).conj(),
}


def sums(v: torch.Tensor) -> torch.Tensor:
    """What depends on the order in which elements are added up, and on where they lie."""
    v = v.real if v.is_complex() else v
    flat = v.flatten(1)
    parts = [
        v.sum().reshape(1),
        v.norm().reshape(1),
        v.mean(1).flatten(),
        (flat @ flat.T).flatten(),
    ]
    gelu = nn.functional.gelu(v)
    weight = torch.linspace(-1, 1, v.shape[-1] * 8).reshape(8, v.shape[-1])
    return torch.cat([*parts, gelu.flatten(), nn.functional.linear(v, weight).flatten()])


def total(output: torch.Tensor, _: Any) -> torch.Tensor:
    return output.double().sin().sum()


def layout(name: str) -> ExactCase:
    def layers() -> list[nn.Module]:
        return [nn.Linear(48, 96), Apply(LAYOUTS[name]), Apply(sums), nn.Identity()]

    return ExactCase(layers, lambda: pairs((3, 32, 48), 3), total)


def keep_positive(x: torch.Tensor) -> torch.Tensor:
    """Drops rows by their values: the shape follows from no other shape."""
    return x[x.sum(-1) > 0]


def up_to_longest(x: torch.Tensor) -> torch.Tensor:
    return x[: 1 + int((x[:, 0] > 0).sum())]


def without_nothing(output: torch.Tensor, _: Any) -> torch.Tensor:
    return output.double().sum() + len(output)


def pack_by_value(x: torch.Tensor) -> Any:
    lengths = (1 + (x > 0).sum(1)).clamp(max=WIDTH - 1)
    return nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def unpack(packed: Any) -> torch.Tensor:
    rows = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0]
    return nn.functional.pad(rows, (0, WIDTH - rows.shape[1]))


def text(x: torch.Tensor) -> Any:
    return {"h": x, "note": f"{len(x)} rows", "rest": (None, 3, True), "parts": torch.max(x, 1)}


def from_text(value: Any) -> torch.Tensor:
    assert value["note"] == f"{len(value['h'])} rows"
    assert value["rest"] == (None, 3, True)
    return value["h"] + value["parts"].values[:, None]


@dataclass
class Batch:
    rows: torch.Tensor
    name: str = "batch"


def in_batches() -> Iterator[Any]:
    """Items of classes of a caller's own, filled anew each time."""
    batch, labels = Batch(torch.empty(4, WIDTH)), UserDict(y=torch.empty(4, WIDTH))
    for x, y in pairs(count=7):
        batch.rows.copy_(x)
        labels["y"].copy_(y)
        yield batch, labels


class OfBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, batch: Batch) -> torch.Tensor:
        assert batch.name == "batch"
        return self.linear(batch.rows)


def misaligned() -> Iterator[Any]:
    """Tensors that begin at an odd byte, as in files with a header."""
    for x, y in pairs():
        yield odd(x), odd(y)


def odd(x: torch.Tensor) -> torch.Tensor:
    """The same values, in memory that begins at an odd byte."""
    buffer = bytearray(3) + bytearray(x.numpy().tobytes())
    array = np.ndarray(x.shape, dtype=np.float32, buffer=buffer, offset=3)
    return torch.from_numpy(array)


class Changing(nn.Module):
    """Returns plain values that are equal and yet other ones, beside two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        values = [1, True, 1.0, 0.0, -0.0]
        return x, x + 1, values[self.calls % 5], np.full(2, self.calls)


def of_changing(value: Any) -> torch.Tensor:
    x, y, plain, array = value
    scale = {int: 2.0, bool: 3.0, float: 5.0}[type(plain)]
    return x * scale + y * float(np.copysign(1.0, plain)) + float(array.sum())


class KeepsStorage(nn.Module):
    """Keeps nothing of its input but the storage."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.untyped_storage(), x.storage_offset(), x.shape))
        return x * 1.5


def stored(layer: nn.Module) -> Any:
    if not isinstance(layer, KeepsStorage):
        return None
    return [torch.empty(0).set_(s, first, shape).tolist() for s, first, shape in layer.seen]


class OnStorage(nn.Module):
    """Puts every output on the same storage."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = torch.empty(4 * WIDTH).untyped_storage()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(0).set_(self.storage, 0, x.shape, x.stride()).copy_(torch.tanh(x))


CASES: dict[str, ExactCase] = {
    "items of classes of one's own": ExactCase(
        lambda: [OfBatch(), linear(), nn.Tanh(), linear()],
        in_batches,
        lambda output, label: nn.functional.mse_loss(output, label["y"]),
    ),
    "inputs at odd addresses": ExactCase(
        # A matrix product of what begins at an odd byte has bits of its own.
        lambda: [nn.Identity(), nn.ReLU(), nn.Identity(), nn.ReLU()],
        misaligned,
    ),
    "outputs at odd addresses": ExactCase(lambda: around(Apply(odd), linear()), pairs),
    "values that are equal and differ": ExactCase(
        lambda: around(Changing(), Apply(of_changing)), lambda: pairs(count=9)
    ),
    "a layer keeps the storage of its inputs": ExactCase(
        lambda: around(KeepsStorage(), KeepsStorage()), lambda: pairs(count=9), kept=stored
    ),
    "outputs on one storage": ExactCase(lambda: around(OnStorage(), OnStorage()), pairs),
    "singular values": ExactCase(
        lambda: around(Apply(torch.linalg.svdvals), Apply(lambda s: s[:, None].expand(4, WIDTH))),
        pairs,
    ),
    "rows cut by what Python counts": ExactCase(
        lambda: around(Apply(lambda x: x[: 1 + sum(v > 0 for v in x[:, 0].tolist())]), linear()),
        lambda: pairs((9, WIDTH), 8),
        lambda output, _: output.double().sum() + len(output),
    ),
    "packed sequences": ExactCase(
        lambda: around(Apply(pack_by_value), Apply(unpack)),
        lambda: pairs((3, WIDTH), 8),
        lambda output, _: output.double().sum() + len(output),
    ),
    "a metric keeps outputs": ExactCase(
        lambda: [linear(), linear(), nn.Identity(), nn.Tanh()],
        pairs,
        metric=KeepsOutputs,
    ),
    "a metric keeps what the last stage passes on": ExactCase(
        lambda: [linear(), nn.Tanh(), linear(), nn.Identity()],
        pairs,
        metric=KeepsOutputs,
    ),
    "a layer keeps its inputs": ExactCase(
        lambda: around(KeepsInputs(), KeepsInputs()), lambda: pairs(count=9), kept=features
    ),
    "outputs in one place": ExactCase(lambda: around(Static(), Static()), pairs),
    "outputs in an array of numpy": ExactCase(
        lambda: around(Static(of_numpy=True), linear()), pairs
    ),
    "a loader that fills the same memory": ExactCase(lambda: around(linear(), linear()), Recycling),
    "a first stage that passes such memory on": ExactCase(
        lambda: [nn.Identity(), nn.Identity(), linear(), linear()], Recycling
    ),
    "one tensor twice": ExactCase(lambda: around(Apply(lambda h: (h, h)), AddInPlace()), pairs),
    "a tensor and a view of it": ExactCase(
        lambda: around(Apply(lambda h: (h, h[:, :3])), Apply(scale_view)), pairs
    ),
    "layers that count and grow": ExactCase(
        lambda: around(Counting(), Counting()), sequences, kept=counts
    ),
    "rows dropped by value": ExactCase(
        lambda: around(Apply(keep_positive), linear()),
        lambda: pairs((9, WIDTH), 8),
        without_nothing,
    ),
    "rows cut by value": ExactCase(
        lambda: around(Apply(up_to_longest), linear()),
        lambda: pairs((9, WIDTH), 8),
        without_nothing,
    ),
    "rows dropped behind numpy's back": ExactCase(
        lambda: around(Apply(lambda x: x[: 1 + int((x.numpy()[:, 0] > 0).sum())]), linear()),
        lambda: pairs((9, WIDTH), 8),
        without_nothing,
        {"dynamic_shapes": True},
    ),
    "plain values beside tensors": ExactCase(
        lambda: around(Apply(text), Apply(from_text)),
        lambda: [pairs((n, WIDTH), 1)[0] for n in (2, 3, 2, 4)],
    ),
    **{f"layout {name}": layout(name) for name in LAYOUTS},
}


def scale_view(pair: Any) -> torch.Tensor:
    whole, view = pair
    view.mul_(2.0)
    return whole
