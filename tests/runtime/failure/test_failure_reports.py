"""What failures say, and the decisions of the parts that watch a run, without processes."""

import pickle
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from runtime import (
    DifferentDataError,
    Evaluator,
    LostPeerError,
    NonFiniteError,
    RemoteError,
    StalledError,
)
from runtime.cli.exits import exit_for
from runtime.data.fingerprint import fingerprint, require_same_data
from runtime.device import Clock
from runtime.distributed.processes import Terminated, WorkerError
from runtime.failure.forced_exit import LastResort
from runtime.failure.guard import Guard
from runtime.failure.position import Pointer, Position
from runtime.failure.report import Failure
from runtime.failure.store import Beat
from runtime.failure.watchdog import describe
from runtime.transport import run_stages
from schedcc import compile_stage
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

DATA = batches([2, 3, 1, 2])


def beat(at: str, seconds: float, waits_for: str = "", *, evaluating: bool = True) -> Beat:
    position = Position(at=at, waits_for=waits_for, seconds=seconds, progress=1)
    return Beat(number=1, evaluating=evaluating, position=position)


def test_a_stall_is_told_as_who_waits_for_whom():
    beats = {
        0: beat("step 3: SendActivation(stage=1, micro_batch=2, buffer=0, peer=1)", 5.0, "stage 1"),
        1: beat("step 3: ForwardPass(stage=1, micro_batch=2, buffer=0)", 5.2),
        2: beat("step 4: RecvActivation(stage=1, micro_batch=2, buffer=0, peer=1)", 1.0, "stage 1"),
        3: beat("the end of the evaluation", 9.0, evaluating=False),
    }
    stages = tuple(f"stage {n}" for n in range(5))
    silence = {0: 0.1, 1: 0.0, 2: 4.0, 3: 9.0}
    assert describe(stages, 5.0, beats, silence | {3: 0.0}).splitlines() == [
        "no stage got on for 5 s (the timeout): stage 2 gave no sign of life; "
        "stage 3 and stage 4 did not take part; stage 1 did not finish what it was at",
        "  stage 0: at step 3: SendActivation(stage=0, micro_batch=2, buffer=0, peer=1), "
        "for 5.1 s, "
        "waits for stage 1",
        "  stage 1: at step 3: ForwardPass(stage=1, micro_batch=2, buffer=0), for 5.2 s",
        "  stage 2: no sign of life for 4.0 s; last at step 4: RecvActivation(micro_batch=2, "
        "buffer=0, peer=1), for 1.0 s, waits for stage 1",
        "  stage 3: is not in an evaluation",
        "  stage 4: has not begun this evaluation",
    ]
    waiting = {n: beat("x", 1.0, "stage 0") for n in range(2)}
    assert "the stages wait for each other" in describe(stages[:2], 5.0, waiting, {0: 0, 1: 0})
    deaf = describe(stages[:2], 5.0, waiting, {0: 0.0, 1: 6.0}, unanswered=6.0)
    assert "the store has not answered for 6.0 s" in deaf


def test_errors_travel_with_what_they_tell():
    for kind, expected in (
        ("error", RemoteError),
        ("lost", LostPeerError),
        ("stalled", StalledError),
    ):
        failure = Failure(kind=kind, reporter=1, stage="stage 1", at="step 2", reason="why")
        error = pickle.loads(pickle.dumps(failure.exception()))
        assert type(error) is expected
        assert error.failure == failure


def test_a_long_traceback_keeps_its_end():
    failure = Failure.of(ValueError("x" * 50_000), reporter=0, stage="stage 0", at="somewhere")
    assert len(failure.traceback) == 20_000
    assert failure.traceback.endswith("x\n")


def test_a_process_stuck_in_its_device_is_ended_after_a_grace_period_and_says_why():
    ended: list[int] = []
    said: list[str] = []
    last_resort = LastResort(grace=10.0, exit=ended.append, write=said.append)
    failure = Failure.of(ArithmeticError("no"), reporter=2, stage="stage 2", at="step 7")
    last_resort.consider(failure, now=100.0)
    last_resort.consider(failure, now=109.9)
    assert (ended, said) == ([], [])
    last_resort.consider(failure, now=110.0)
    assert ended == [1]
    assert "stage 2 failed at step 7: ArithmeticError: no\nTraceback of stage 2:" in said[0]
    assert "does not come back from its device 10 s after this failure" in said[0]


class FakeDevice(Clock):
    """A GPU that has reached only the first `done` marks."""

    def __init__(self) -> None:
        self.on_gpu, self.done, self.marks = True, 0, 0

    def mark(self) -> Any:
        self.marks += 1
        return self.marks

    def reached(self, mark: Any) -> bool:
        return mark <= self.done


def test_on_a_device_the_pointer_waits_watchfully_before_the_epilogue():
    device = FakeDevice()
    failed = threading.Event()

    def check() -> None:
        if failed.is_set():
            raise InterruptedError

    pointer = Pointer(check, device)
    placed = list(compile_stage(2, 2, 0).program.placed())
    steps = [p for p in placed if p.step is not None]
    (epilogue, *_) = [p for p in placed if p.step is None]
    for instruction in steps:
        pointer.started(instruction)
        pointer.finished(instruction)
    enqueued = pointer.position().progress
    device.done = 2
    caught: list[BaseException] = []

    def main() -> None:
        try:
            pointer.started(epilogue)
        except InterruptedError as error:
            caught.append(error)

    thread = threading.Thread(target=main)
    thread.start()
    deadline = time.monotonic() + 10
    while pointer.position().progress < enqueued + 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    stuck_at = pointer.position().at
    failed.set()
    thread.join(10)
    assert caught, "a host that waits for its device hears of failures"
    assert stuck_at == f"{steps[2].where}: {steps[2].instruction!r}"


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
    def stage(end: Any) -> str:
        ev = Evaluator(mlp(), loss_fn=nn.functional.mse_loss, transport=end,
                       check_finite=end.stage_id == 0)  # fmt: skip
        with pytest.raises(ValueError, match="check_finite differs") as caught:
            ev.eval_batch(iter(DATA), num_micro_batches=4)
        return str(caught.value)

    assert set(run_stages(2, stage)) == {"check_finite differs: True on stage 0, False on stage 1"}


def test_threads_recover_from_a_failure_as_processes_do():
    class FailsOnce(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                raise ArithmeticError("once")
            return x

    layers = [nn.Linear(4, 6), FailsOnce(), nn.Linear(6, 6)]

    def call(ev: Evaluator) -> float | None:
        with pytest.raises((ArithmeticError, RemoteError)) as caught:
            ev.eval_batch(iter(DATA), num_micro_batches=4)
        if ev.stage_id != 1:
            assert "stage 1 failed at step " in str(caught.value)
            assert "ArithmeticError: once" in str(caught.value)
        return ev.eval_batch(iter(DATA), num_micro_batches=4).loss

    _, expected = one_process([layers[0], layers[2]], DATA)
    weights = [len(x) for x, _ in DATA]
    average = sum(a * b for a, b in zip(expected, weights, strict=True)) / sum(weights)
    for loss in over_stages(3, call, layers=lambda: layers):
        assert loss == pytest.approx(average, rel=1e-6)


def test_a_callback_of_a_later_chunk_is_told_with_its_place_in_the_data_set():
    from runtime.evaluation.evaluation import CHUNK

    def refuse(micro_batch: int, _: Any) -> None:
        if micro_batch == CHUNK + 1:
            raise LookupError("enough")

    data = [DATA[0]] * (CHUNK + 3)

    def call(ev: Evaluator) -> str:
        with pytest.raises((LookupError, RemoteError)) as caught:
            ev.evaluate(data, on_logits=refuse)
        return str(caught.value)

    first, last = over_stages(2, call)
    assert last == "enough"
    assert (
        f"ForwardPass(stage=1, micro_batch=1, buffer=1) (counted from micro-batch {CHUNK})" in first
    )


def test_a_timeout_has_to_be_positive():
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="needed more than 0"):
            Evaluator(mlp(), timeout=timeout)


def test_a_run_inside_a_run_is_a_part_of_it():
    def stage(end: Any) -> list[float | None]:
        guard = Guard(end)
        ev = Evaluator(mlp(), loss_fn=nn.functional.mse_loss, transport=end, guard=guard)
        with guard.run() as run:
            run.phase("the loading", waits_for="", patient=True)
            return [ev.eval_batch(iter(DATA), num_micro_batches=4).loss for _ in range(2)]

    losses = run_stages(2, stage)
    assert losses[0] == losses[1]


def test_one_rank_prints_an_error_and_the_others_leave_it_to_it(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    lost = Failure(kind="lost", reporter=1, stage="stage 1", at="x", reason="stage 2 is gone")
    assert exit_for(lost.exception(), running=True) == (1, "stage 2 is gone", "")
    monkeypatch.setenv("RANK", "0")
    assert exit_for(lost.exception(), running=True) == (1, "", "")
    told = Failure.of(KeyError("k"), reporter=2, stage="stage 2", at="x").exception()
    assert exit_for(told, running=True) == (1, "", "")
    assert exit_for(ValueError("bad"), running=False) == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert exit_for(ValueError("bad"), running=False) == (2, "bad", "")
    own = exit_for(ZeroDivisionError("by me"), running=True)
    assert own.status == 1
    assert own.message == "ZeroDivisionError: by me"
    assert exit_for(KeyboardInterrupt(), running=True) == (130, "interrupted", "")
    assert exit_for(Terminated(), running=True) == (143, "terminated", "")
    assert exit_for(WorkerError("m", "TextError", "empty"), running=True) == (2, "empty", "")
    assert exit_for(WorkerError("m", "KeyError", "k", "trace"), running=True) == (1, "m", "trace")
