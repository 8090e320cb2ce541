"""What failures say, and the decisions of the parts that watch a run, without processes."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from runtime import (
    Evaluator,
    LostPeerError,
    RemoteError,
    StalledError,
)
from runtime.cli.exits import exit_for
from runtime.distributed.processes import Terminated, WorkerError
from runtime.failure.detection.instruction_pointer import RankStatus
from runtime.failure.detection.watchdog import describe
from runtime.failure.errors import error_of
from runtime.failure.guard import Guard
from runtime.failure.report import Failure
from runtime.failure.store import Heartbeat
from runtime.testing import run_threads
from tests.support.models_for_tests import batches, mlp, one_process, over_stages

DATA = batches([2, 3, 1, 2])


def beat(at: str, seconds: float, waits_for: str = "", *, evaluating: bool = True) -> Heartbeat:
    position = RankStatus(at=at, waits_for=waits_for, seconds=seconds, progress=1)
    return Heartbeat(number=1, evaluating=evaluating, status=position)


def test_a_stall_is_told_as_who_waits_for_whom():
    beats = {
        0: beat("step 3: SendActivation(stage=0, micro_batch=2, buffer=0, peer=1)", 5.0, "stage 1"),
        1: beat("step 3: ForwardPass(stage=1, micro_batch=2, buffer=0)", 5.2),
        2: beat("step 4: RecvActivation(stage=2, micro_batch=2, buffer=0, peer=1)", 1.0, "stage 1"),
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
        "  stage 2: no sign of life for 4.0 s; last at step 4: RecvActivation(stage=2, "
        "micro_batch=2, buffer=0, peer=1), for 1.0 s, waits for stage 1",
        "  stage 3: is not in an evaluation",
        "  stage 4: has not begun this evaluation",
    ]
    waiting = {n: beat("x", 1.0, "stage 0") for n in range(2)}
    assert "the stages wait for each other" in describe(stages[:2], 5.0, waiting, {0: 0, 1: 0})
    deaf = describe(stages[:2], 5.0, waiting, {0: 0.0, 1: 6.0}, unanswered=6.0)
    assert "the store has not answered for 6.0 s" in deaf
    slow = describe(stages[:2], 5.0, waiting, {0: 0.0, 1: 6.0}, answers=True)
    assert slow.splitlines()[0].endswith(
        "stage 1 gave no sign of life; connections to it are taken, so its process is stopped, or "
        "the network is slow and needs a longer timeout"
    )
    unheard = describe(stages[:2], 5.0, {0: waiting[0]}, {0: 0.0}, met=True)
    assert "stage 1 gave no sign of life" in unheard
    assert unheard.endswith("stage 1: nothing was heard of it")


def test_errors_travel_with_what_they_tell():
    for kind, expected in (
        ("error", RemoteError),
        ("lost", LostPeerError),
        ("stalled", StalledError),
    ):
        failure = Failure(kind=kind, reporter=1, name="stage 1", at="step 2", reason="why")
        error = pickle.loads(pickle.dumps(error_of(failure)))
        assert type(error) is expected
        assert error.failure == failure


def test_a_long_traceback_keeps_its_end():
    failure = Failure.of(ValueError("x" * 50_000), reporter=0, name="stage 0", at="somewhere")
    assert len(failure.traceback) == 20_000
    assert failure.traceback.endswith("x\n")


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
    from runtime.planning.sources import CHUNK

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
    assert f"ForwardPass(stage=1, micro_batch={CHUNK + 1}, buffer=1)" in first


def test_a_timeout_has_to_be_positive():
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="needed more than 0"):
            Evaluator(mlp(), timeout=timeout)


def test_a_run_inside_a_run_is_a_part_of_it():
    layers = [mlp(), mlp()]  # here: threads would draw from one generator at the same time

    def stage(end: Any) -> list[float | None]:
        guard = Guard(end)
        ev = Evaluator(layers[end.rank], loss_fn=nn.functional.mse_loss, transport=end, guard=guard)
        with guard.run() as run:
            run.phase("the loading", waits_for="", patient=True)
            return [ev.eval_batch(iter(DATA), num_micro_batches=4).loss for _ in range(2)]

    losses = run_threads(2, stage)
    assert losses[0] == losses[1]


def test_one_rank_prints_an_error_and_the_others_leave_it_to_it(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    lost = Failure(kind="lost", reporter=1, name="stage 1", at="x", reason="stage 2 is gone")
    assert exit_for(error_of(lost), running=True) == (1, "stage 2 is gone", "")
    monkeypatch.setenv("RANK", "0")
    assert exit_for(error_of(lost), running=True) == (1, "", "")
    told = error_of(Failure.of(KeyError("k"), reporter=2, name="stage 2", at="x"))
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


def test_of_ranks_that_are_cut_off_one_speaks_on_each_host(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, local_rank, said in (("2", "0", "no store"), ("3", "1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        gone = tuple({0, 1, 2, 3} - {int(rank)})
        cut_off = Failure(
            kind="lost", reporter=int(rank), name="x", at="x", reason="no store", gone=gone
        )
        assert exit_for(error_of(cut_off), running=True) == (1, said, "")
    assert exit_for(KeyboardInterrupt(), running=True) == (130, "", ""), "rank 0 says it"


def test_who_is_cut_off_blames_the_store_and_nobody_of_whom_nothing_is_heard():
    beats = {0: beat("step 3", 5.0, "stage 1")}
    place = "the store at 10.0.0.1 port 29500"
    told = describe(("stage 0", "stage 1"), 5.0, beats, {0: 0.0}, 6.0, place=place)
    assert told.splitlines() == [
        f"no stage got on for 5 s (the timeout): {place} has not answered for 6.0 s, the process "
        "that hosts it (the launcher, else the one of rank 0) is stopped or cut off",
        "  stage 0: at step 3, for 5.0 s, waits for stage 1",
        "  stage 1: nothing was heard of it",
    ]
    slow = describe(("stage 0", "stage 1"), 5.0, beats, {0: 0.0}, 6.0, alive=7.0, place=place)
    assert place not in slow
