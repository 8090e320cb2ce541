"""A thread asks a loader, while the stage computes; nothing else changes by that."""

import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import count, cycle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from runtime import Evaluator
from runtime.data import ahead, loading
from runtime.data.ahead import THREAD, Ahead
from runtime.data.micro_batches import MOST_BYTES
from runtime.failure.errors import RemoteError
from tests.support.models_for_tests import Data, batches, mlp, one_process, over_stages

BOUND = 20.0
"""Seconds for what has to come, on however busy a machine."""


class Loader:
    """Notes which thread asks for each item."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.threads: list[str] = []
        self.asked = threading.Condition()

    def __iter__(self) -> Iterator[Any]:
        for number, pair in enumerate(self.data):
            with self.asked:
                self.threads.append(threading.current_thread().name)
                self.asked.notify_all()
            self.came(number)
            yield pair

    def came(self, number: int) -> None:
        """An item is there."""

    def wait_until_asked_for(self, number: int) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: len(self.threads) > number, BOUND)


class Calls(nn.Module):
    """Counts its forwards, and calls something in each."""

    def __init__(self, within: Any = lambda _: None) -> None:
        super().__init__()
        self.calls, self.within = 0, within

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.within(self.calls - 1)
        return x


def evaluated(loader: Any, *layers: nn.Module, **options: Any) -> Any:
    options = {"loss_fn": nn.functional.mse_loss, "fetch_in_thread": True} | options
    with Evaluator([*layers, *mlp()], **options) as evaluator:
        return evaluator.evaluate(loader)


def threads_have_ended() -> bool:
    until = time.monotonic() + BOUND
    while any(thread.name == THREAD for thread in threading.enumerate()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_a_loader_works_while_a_stage_computes():
    data = batches([2] * 30)
    loader = Loader(data)

    def within(number: int) -> None:
        """A forward that ends when the loader is asked for what comes after the next."""
        assert loader.wait_until_asked_for(min(number + 2, len(data) - 1))

    result = evaluated(loader, Calls(within))
    assert set(loader.threads) == {THREAD}
    assert result.losses == tuple(one_process(mlp(), data)[1])


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_the_loss_is_the_same_and_a_loader_is_advanced_as_far(stages, whole):
    data = batches([1 + n % 3 for n in range(40)])
    expected = one_process(mlp(), data)[1]

    def call(ev: Evaluator) -> Any:
        loader = Loader(data)
        if whole:
            return [ev.evaluate(loader)], loader.threads
        items = iter(loader)
        results = [ev.eval_batch(items, num_micro_batches=15) for _ in range(2)]
        left = sum(1 for _ in items) if ev.is_first or ev.is_last else 10
        assert left == 10
        return results, loader.threads

    for results, threads in over_stages(stages, call, fetch_in_thread=True):
        losses = [loss for result in results for loss in result.losses]
        assert losses == pytest.approx(expected[: len(losses)])
        assert len(losses) == (40 if whole else 30)
        assert len(threads) in (0, len(data))


@pytest.mark.parametrize("rows", [2, 50_000])
def test_memory_that_is_filled_again_is_not_mistaken(rows, monkeypatch):
    copy = loading._copy

    def slowly(parts: Any) -> None:
        time.sleep(0.01)
        copy(parts)

    monkeypatch.setattr(loading, "_copy", slowly)
    data = batches([rows] * 6)

    class Recycling(Loader):
        def __iter__(self) -> Iterator[Any]:
            inputs, labels = (half.clone() for half in self.data[0])
            for pair in super().__iter__():
                inputs.copy_(pair[0])
                labels.copy_(pair[1])
                yield inputs, labels

    result = evaluated(Recycling(data))
    assert result.losses == pytest.approx(one_process(mlp(), data)[1])


class Items(Dataset[Any]):
    """Items of a `DataLoader`."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Any:
        return self.data[number]


class NotedOrder(Sampler[int]):
    """Notes which thread asks for the number of the next item."""

    def __init__(self, numbers: int) -> None:
        self.numbers, self.threads = numbers, list[str]()

    def __iter__(self) -> Iterator[int]:
        for number in range(self.numbers):
            self.threads.append(threading.current_thread().name)
            yield number


@pytest.mark.parametrize(("workers", "last"), [(0, "MainThread"), (1, THREAD)])
def test_by_itself_only_a_loader_with_workers_is_asked_by_a_thread(workers, last):
    data = batches([2] * 20)
    order = NotedOrder(len(data))
    loader = DataLoader(Items(data), batch_size=None, sampler=order, num_workers=workers)
    result = evaluated(loader, fetch_in_thread="auto")
    assert order.threads[-1] == last
    assert result.losses == tuple(one_process(mlp(), data)[1])
    plain = Loader(data)
    evaluated(plain, fetch_in_thread="auto")
    assert THREAD not in plain.threads


def test_random_numbers_that_order_a_loader_are_drawn_where_they_were():
    data = batches([2] * 20)

    def orders(**options: Any) -> tuple[Any, torch.Tensor]:
        torch.manual_seed(3)
        loader = DataLoader(Items(data), batch_size=None, shuffle=True, num_workers=1)
        return evaluated(loader, **options).losses, torch.rand(1)

    assert orders(fetch_in_thread="auto") == orders(fetch_in_thread=False)


@pytest.mark.parametrize("in_thread", [True, False])
def test_without_prefetching_everything_is_fetched_when_it_is_needed(in_thread):
    loader, calls = Loader(batches([2] * 10)), Calls()
    lead: list[int] = []
    calls.within = lambda number: lead.append(len(loader.threads) - number)
    evaluated(loader, calls, prefetch=0, fetch_in_thread=in_thread)
    assert THREAD not in loader.threads
    assert set(lead) == {1}


@pytest.mark.parametrize("most", [1, 2, 5])
def test_so_many_are_fetched_ahead_and_no_more(most):
    data = batches([2] * 20)
    loader = Loader(data)
    lead: list[int] = []

    def within(number: int) -> None:
        if number % most == 0:  # all that was there is used, or this is the first
            assert loader.wait_until_asked_for(min(number + (most > 1), len(data) - 1))
        time.sleep(0.002)
        lead.append(len(loader.threads) - 1 - number)

    evaluated(loader, Calls(within), prefetch=most)
    assert 1 <= max(lead) <= most


@pytest.mark.parametrize("value", [-1, True, 1.5, None])
def test_what_is_no_number_to_prefetch_is_refused(value):
    with pytest.raises(ValueError, match=f"prefetch is {value}, needed an integer of at least 0"):
        Evaluator(mlp(), prefetch=value)


def test_what_is_no_choice_of_a_thread_is_refused():
    with pytest.raises(ValueError, match="fetch_in_thread is 'yes', needed True, False or 'auto'"):
        Evaluator(mlp(), fetch_in_thread="yes")  # type: ignore[arg-type]


NAME = contextvars.ContextVar("NAME", default="nobody")


def test_a_loader_finds_what_it_would_find_in_the_thread_that_evaluates():
    found: list[Any] = []

    class Looking(Loader):
        def came(self, _: int) -> None:
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            found.append((NAME.get(), *modes, product.dtype, torch.get_num_threads()))

    def run(*, in_thread: bool) -> list[Any]:
        found.clear()
        contextvars.copy_context().run(
            lambda: (
                NAME.set("somebody"),
                evaluated(Looking(batches([2] * 3)), fetch_in_thread=in_thread),
            )
        )
        return [*found]

    for mode in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        with mode:
            expected = run(in_thread=False)
            assert run(in_thread=True) == expected
            assert expected[0][0] == "somebody"


class Broken(Loader):
    """Fails at item 25."""

    def came(self, number: int) -> None:
        if number == 25:
            raise OSError("the disk is gone")


def test_an_error_of_the_loader_is_raised_after_what_came_before_it():
    calls = Calls()
    with pytest.raises(OSError, match="the disk is gone"):
        evaluated(Broken(batches([2] * 30)), calls)
    assert calls.calls == 25


def test_an_error_of_the_loader_keeps_nothing():
    layer = Calls()
    gone = weakref.ref(layer)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(OSError, match="the disk is gone"):
            evaluated(Broken(batches([2] * 30)), layer)
        assert threads_have_ended()
        del layer
        assert gone() is None
    finally:
        gc.enable()


def test_an_item_that_is_no_micro_batch_is_named_by_its_number():
    data: list[Any] = batches([2] * 30)
    data[25] = (1, 2, 3)
    with pytest.raises(ValueError, match="item 25 of the data is a tuple of 3"):
        evaluated(Loader(data))


class Fails(nn.Module):
    """A layer that fails once, at its forward number 5."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 5:
            raise ZeroDivisionError("in a layer")
        return x


def test_a_failure_elsewhere_does_not_wait_for_a_loader(monkeypatch):
    monkeypatch.setattr(ahead, "CLOSE_SECONDS", 0.01)
    free = threading.Event()

    class Stuck(Loader):
        def came(self, number: int) -> None:
            if number == 10:
                free.wait(3 * BOUND)

    def call(ev: Evaluator) -> str:
        data = batches([2] * 40)
        with pytest.raises((ZeroDivisionError, RemoteError), match="in a layer"):
            ev.evaluate(Stuck(data) if ev.is_first else data)
        return "told" if not free.is_set() else "late"

    try:
        told = over_stages(2, call, layers=lambda: [*mlp(), Fails()], fetch_in_thread=True)
    finally:
        free.set()
    assert told == ["told", "told"]
    assert threads_have_ended()


def test_a_loader_that_is_in_the_midst_of_an_item_is_waited_for_by_the_next_evaluation(monkeypatch):
    monkeypatch.setattr(ahead, "CLOSE_SECONDS", 0.01)
    data = batches([2] * 20)

    class Rewinding:
        """Its position is its own, as that of a `DataLoader` whose workers persist."""

        def __init__(self) -> None:
            self.position, self.seconds = 0, 0.0

        def __iter__(self) -> "Rewinding":
            self.position = 0
            return self

        def __next__(self) -> Any:
            number = self.position
            if number == len(data):
                raise StopIteration
            if number == 7:
                time.sleep(self.seconds)
            self.position = number + 1
            return data[number]

    loader, layer = Rewinding(), Fails()
    loader.seconds = 0.3
    with Evaluator(
        [layer, *mlp()], loss_fn=nn.functional.mse_loss, fetch_in_thread=True
    ) as evaluator:
        with pytest.raises(ZeroDivisionError):
            evaluator.evaluate(loader)
        loader.seconds = 0.0
        assert evaluator.evaluate(loader).losses == tuple(one_process(mlp(), data)[1])


def test_threads_end_with_their_evaluation():
    asked = count()

    def endless() -> Iterator[Any]:
        for pair in cycle(batches([2] * 3)):
            next(asked)
            yield pair

    evaluated(Loader(batches([2] * 30)), prefetch=3)
    assert threads_have_ended()
    with pytest.raises(ZeroDivisionError):
        evaluated(endless(), Fails(), prefetch=3)
    assert threads_have_ended()
    assert next(asked) <= 5 + 3 + 1, "what is ahead, and one more"


def test_without_a_thread_to_be_had_the_loader_is_asked_by_the_one_there_is(monkeypatch):
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == THREAD:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    loader = Loader(batches([2] * 5))
    assert evaluated(loader).losses == tuple(one_process(mlp(), loader.data)[1])
    assert THREAD not in loader.threads


EXIT = """
import sys
import torch
from torch import nn
from runtime import Evaluator

def fails(x):
    raise SystemExit(7)

def endless():
    big = torch.ones(700, 700)
    while True:
        for _ in range(10):
            big = (big @ big).clamp(max=1.0)
        yield torch.ones(1, 4), torch.ones(1, 4)

with Evaluator([fails], loss_fn=nn.functional.mse_loss, fetch_in_thread=True) as evaluator:
    evaluator.evaluate(endless())
"""


def test_a_process_that_ends_while_its_loader_works_ends_as_it_was_told():
    ended = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, timeout=6 * BOUND, check=False
    )
    assert ended.returncode == 7, ended.stderr.decode()


@given(
    st.lists(st.integers(0, MOST_BYTES), max_size=20),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=20),
)
def test_all_comes_once_in_order_and_within_bounds_unless_it_is_waited_for(sizes, most, steps):
    numbers, used, wanted = count(), 0, 0
    collected: list[int] = []
    too_many: list[int] = []

    def make() -> tuple[int, int] | None:
        number = next(numbers)
        if number == len(sizes):
            return None
        unused = sizes[used:number]
        full = len(unused) >= most or sum(unused) >= MOST_BYTES
        if full and len(unused) >= wanted:
            too_many.append(number)
        return number, sizes[number]

    thread = Ahead(make, None, most=most, most_bytes=MOST_BYTES)
    ended = False
    for least, uses in [*steps, (len(sizes) + 1, 0)]:
        wanted = max(wanted, len(collected) - used + least)
        found, ended = thread.collect(least, lambda: None)
        assert len(found) >= min(least, len(sizes) - len(collected))
        collected += found
        for _ in range(min(uses, len(collected) - used)):
            used += 1
            thread.used()
    thread.close()
    assert collected == list(range(len(sizes)))
    assert ended
    assert not too_many


def test_what_waits_for_a_failed_run_is_let_go():
    class FailedError(Exception):
        pass

    free = threading.Event()

    def make() -> tuple[int, int] | None:
        free.wait(BOUND)
        return None

    def check() -> None:
        raise FailedError

    thread = Ahead(make, None, most=1, most_bytes=1)
    with pytest.raises(FailedError):
        thread.collect(1, check)
    thread.close()
    free.set()
