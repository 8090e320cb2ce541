"""Data is fetched while the pipeline runs: a bounded number ahead, once, and to its end."""

import gc
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.data import loading, micro_batches, stream
from runtime.data.items import ItemReader, Reading
from runtime.data.micro_batches import MOST, Prefetcher
from runtime.data.route import Route
from runtime.data.stream import Stream, window_of
from runtime.planning.sources import CHUNK
from schemas import Place
from tests.support.models_for_tests import (
    Data,
    Unwatched,
    batches,
    mlp,
    one_process,
    over_stages,
)

LONG = [1 + m % 3 for m in range(2 * CHUNK + 70)]


class Watched:
    """Data that knows how much of it is asked for, and what of it is still alive."""

    def __init__(self, data: Data, forwarded: Callable[[], int] = lambda: 0) -> None:
        self.data, self.forwarded = data, forwarded
        self.drawn = self.alive = self.most_ahead = self.most_alive = 0

    def __iter__(self) -> Iterator[Any]:
        for inputs, labels in self.data:
            self.drawn += 1
            self.most_ahead = max(self.most_ahead, self.drawn - self.forwarded())
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
            own = inputs.clone()
            weakref.finalize(own, self.gone)
            pair = (own, labels)
            del own
            yield pair
            del pair

    def gone(self) -> None:
        self.alive -= 1


class Forwards(nn.Module):
    """Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("stages", [1, 3])
def test_no_more_is_fetched_than_is_about_to_be_used_and_nothing_is_kept(stages, whole):
    data = batches([2] * (CHUNK + 40))

    def call(ev: Evaluator) -> Watched | None:
        first = ev.module[0]
        watched = Watched(data, lambda: first.calls if ev.is_first else 0)
        own = watched if ev.is_first or ev.is_last else None
        if whole:
            ev.evaluate(own)
        else:
            ev.eval_batch(own and iter(own), num_micro_batches=len(data))
        return own

    def layers() -> list[nn.Module]:
        return [Forwards(), *mlp(3)]

    first, *_, last = 2 * over_stages(stages, call, layers=layers)
    gc.collect()
    assert first.drawn == last.drawn == len(data)
    assert first.most_ahead <= MOST + 1
    assert max(first.most_alive, last.most_alive) <= 2, "a copy of what is needed is enough"
    assert first.alive == last.alive == 0


def test_large_inputs_are_fetched_one_by_one():
    large = torch.zeros(1100, 1024)
    data = [(large, torch.zeros(1100, 6))] * 6

    def call(ev: Evaluator) -> int:
        first = ev.module[0]
        watched = Watched(data, lambda: first.calls if ev.is_first else 0)
        ev.evaluate(watched)
        return watched.most_ahead if ev.is_first else 0

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        return [Forwards(), nn.Linear(1024, 6)]

    assert over_stages(2, call, layers=layers)[0] <= 2


class LargeRecycling:
    """Fills the same large memory for every item, and says when."""

    def __init__(self, count: int, said: list[str]) -> None:
        self.count, self.said = count, said

    def __iter__(self) -> Iterator[Any]:
        rows, label = torch.empty(1100, 1024), torch.empty(6)
        for number in range(self.count):
            self.said.append(f"fetch {number}")
            yield rows.fill_(number + 1.0), label.fill_(number)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_large_micro_batch_is_copied_while_the_one_before_it_is_used(stages, monkeypatch):
    copy = loading._copy

    def slowly(parts: Any) -> None:
        time.sleep(0.02)  # a loader that went on meanwhile would be seen
        copy(parts)

    monkeypatch.setattr(loading, "_copy", slowly)

    def call(ev: Evaluator) -> tuple[Any, list[str]]:
        said: list[str] = []
        if ev.is_first:
            ev.module[0].register_forward_hook(lambda *_: said.append("forward"))
        losses = ev.evaluate(LargeRecycling(4, said)).losses
        return losses, said

    def layers() -> list[nn.Module]:
        return [nn.Identity(), nn.ReLU(inplace=True), nn.Identity(), nn.Identity()]

    def loss_fn(output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return (output - label.sum()).sum(dtype=torch.float64)

    options = {"layers": layers, "loss_fn": loss_fn, "weight_fn": lambda _: 1.0}
    found = over_stages(stages, call, **options)
    for losses, _ in found:
        assert losses == tuple(1100 * 1024.0 * (n + 1 - 6 * n) for n in range(4))
    ahead = [f"fetch {n}" for n in range(4)]
    assert found[0][1] == [*ahead[:2], "forward", ahead[2], "forward", ahead[3], *["forward"] * 2]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("count", [1, MOST - 1, MOST, MOST + 1, CHUNK, CHUNK + 1, len(LONG)])
def test_data_of_any_length_is_evaluated_whole_and_layers_run_once_for_each(count, overlap):
    data = batches(LONG[:count])
    _, losses = one_process(mlp(3), data)

    def call(ev: Evaluator) -> tuple[Any, list[int]]:
        calls = [0]
        ev.module[0].register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        own = (pair for pair in data) if ev.is_first or ev.is_last else None
        return ev.evaluate(own), calls

    for result, calls in over_stages(3, call, layers=lambda: mlp(3), overlap=overlap):
        assert result.micro_batches == count
        assert result.losses == tuple(losses)
        assert calls == [count]


@pytest.mark.parametrize("longer", [1, 60, CHUNK])
@pytest.mark.parametrize("whole", [True, False])
def test_stages_whose_data_differ_in_length_are_told(longer, whole):
    data = batches([2] * (CHUNK + 100))

    def call(ev: Evaluator) -> None:
        own = data[: len(data) - longer] if ev.is_last else data
        if whole:
            ev.evaluate(iter(own))
        else:
            ev.eval_batch(iter(own), num_micro_batches=len(data))

    text = "number of micro-batches differs|has more|ended after .* micro-batches"
    with pytest.raises((ValueError, RuntimeError), match=text):
        over_stages(2, call)
    with pytest.raises((ValueError, RuntimeError), match=text):
        over_stages(2, lambda ev: ev.evaluate(data[: len(data) - longer * ev.is_first]))


def test_data_that_differs_late_is_told():
    data = batches([2] * 200)
    shuffled = [*data[:150], data[151], data[150], *data[152:]]

    def call(ev: Evaluator) -> None:
        ev.evaluate(shuffled if ev.is_last else data)

    with pytest.raises(
        (ValueError, RuntimeError), match="read different inputs as micro-batch 150"
    ):
        over_stages(2, call)


@pytest.mark.parametrize("counts", [(300, 5), (5, 300), (0, 70), (64, 64), (257, 256)])
def test_replicas_may_have_shards_of_any_length(counts):
    shards = [batches(LONG[:count], seed=n) for n, count in enumerate(counts)]
    losses = [one_process(mlp(), shard)[1] for shard in shards]
    weights = [[float(len(x)) for x, _ in shard] for shard in shards]

    def call(ev: Evaluator, replica: int) -> Any:
        return ev.evaluate(iter(shards[replica]))

    terms = [
        w * x for ws, xs in zip(weights, losses, strict=True) for w, x in zip(ws, xs, strict=True)
    ]
    expected = sum(terms) / sum(map(sum, weights))
    found = over_stages(2, call, replicas=2)
    assert len({result.loss for result in found}) == 1
    assert found[0].loss == pytest.approx(expected, rel=1e-12)
    for rank, result in enumerate(found):
        assert result.micro_batches == counts[rank // 2]


def test_shapes_may_change_with_the_dtype_of_the_model():
    data = batches([2, 3, 2])

    def call(ev: Evaluator) -> list[Any]:
        found = [ev.evaluate(data).losses]
        ev.module.double()
        as_double = [(x.double(), y.double()) for x, y in data]
        found.append(ev.evaluate(as_double).losses)
        ev.module.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(ev.evaluate(data).losses)
        return [*found, ev.evaluate(data).losses]

    def layers() -> list[nn.Module]:
        torch.manual_seed(0)
        return [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6)]

    expected = over_stages(1, call, layers=layers)[0]
    assert len(set(expected)) == 3
    assert expected[0] == expected[3]
    for found in over_stages(3, call, layers=layers):
        assert found == expected


def test_without_memory_for_a_receive_the_next_evaluation_is_as_any_other():
    data = batches([2, 3, 2])

    def call(ev: Evaluator) -> Any:
        pool = ev._runner._buffers.memory
        allocate, pool._allocate = pool._allocate, out_of_memory
        with pytest.raises((MemoryError, RuntimeError), match="no more"):
            ev.evaluate(data)
        pool._allocate = allocate
        return ev.evaluate(data).losses

    def out_of_memory(nbytes: int) -> torch.Tensor:
        raise MemoryError(f"no more than {nbytes}")

    _, losses = one_process(mlp(), data)
    for found in over_stages(2, call):
        assert found == tuple(losses)


def test_memory_of_plans_and_kinds_is_bounded():
    def call(ev: Evaluator) -> tuple[int, int]:
        for count in range(1, 40):
            ev.eval_batch(iter(batches([1] * count)), num_micro_batches=count)
        evaluations = ev._runner
        return len(evaluations._plans._known), len(evaluations._buffers.memory._memory)

    for plans, memory in over_stages(2, call):
        assert plans <= 16
        assert memory <= 4


def test_what_is_known_of_micro_batches_does_not_pile_up(monkeypatch):
    made: list[Any] = []
    begin = stream.Stream.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(stream.Stream, "__init__", noted)
    data = batches([2] * 300)
    over_stages(3, lambda ev: ev.eval_batch(iter(data), num_micro_batches=300))
    assert len(made) == 3
    for one in made:
        assert len(one._labels) <= 2
        assert len(one._notes) <= MOST + 2


def test_a_window_that_is_asked_for_early_holds_only_what_is_new():
    data = batches([1 + n % 3 for n in range(2 * MOST + 5)])
    prefetcher = prefetcher_of(data)
    prefetcher.fetch()
    window = window_of(prefetcher, 0, None)
    found = Stream(Route.of([0, 1, 0], 0), window, None, prefetcher, Unwatched())
    for m in range(len(data)):
        assert found.has(min(m + 20, len(data) - 1)), "as a plan that posts receives far ahead asks"
        rows = len(data[m][0])
        assert found.note(m).samples == (rows,)
        assert len(found.load(0, m)[Place.INPUT]) == rows
    assert not found.has(len(data))


def test_micro_batches_that_fill_a_window_go_around_a_ring():
    data = batches([2**15] * 20)  # half a megabyte each, so that windows hold eight or nine
    expected = one_process(mlp(), data)[1]
    for result in over_stages(
        3,
        lambda ev: ev.evaluate(iter(data)),
        schedule="interleaved_wide",
        stages=6,
        network={"queue": "channel"},
    ):
        assert result.loss == pytest.approx(sum(expected) / len(expected))


def prefetcher_of(data: Iterable[Any], **options: Any) -> Prefetcher:
    reading = Reading(inputs=True, labels=True, fingerprints=False)
    reader = ItemReader(reading, torch.device("cpu"), "stage 0")
    return Prefetcher(data, reader, around=nullcontext, **options)


def test_a_pipeline_does_not_wait_for_what_comes_later(monkeypatch):
    now = 0.0

    def loader() -> Iterator[Any]:
        """Waits for every second item, until it has become fast."""
        nonlocal now
        for number, pair in enumerate(batches([1] * 2000)):
            now += 0.04 if number % 2 and number < 400 else 0.0
            yield pair

    monkeypatch.setattr(micro_batches.time, "monotonic", lambda: now)
    prefetcher = prefetcher_of(loader())
    sizes = []
    while not prefetcher.ended:
        prefetcher.fetch()
        sizes.append(len(prefetcher.waiting))
        while not prefetcher.is_empty:
            prefetcher.take()
    waited = [n for n, size in enumerate(sizes) if size == 2]
    assert sizes[0] == 6, "what comes within the first tenth of a second"
    assert waited == [65, 194], "one at a time in between, twice as often each time"
    assert sizes[-3:-1] == [MOST, MOST], "and many at once when they are there"
    assert sum(sizes) == 2000


def test_a_pipeline_goes_on_with_each_of_what_comes_slowly(monkeypatch):
    now = 0.0

    def loader() -> Iterator[Any]:
        nonlocal now
        for pair in batches([1] * 8):
            now += 0.04
            yield pair

    monkeypatch.setattr(micro_batches.time, "monotonic", lambda: now)
    prefetcher = prefetcher_of(loader())
    prefetcher.fetch()
    assert len(prefetcher.waiting) == 3, "what comes within the first tenth of a second"
    for number in range(8):
        if prefetcher.is_empty:
            prefetcher.fetch()
            assert (len(prefetcher.waiting), now) == (1, pytest.approx(0.04 * (number + 1)))
        prefetcher.take()
