"""Faults in real processes: every stage ends in time, tells the same story, and goes on after."""

import os
import random

import pytest

from tests.chaos.cluster import Cluster
from tests.chaos.expectations import (
    check,
    check_evaluation,
    check_recovery,
    loss_of_one_process,
)
from tests.chaos.faults import LOST, RECOVERABLE, Fault
from tests.chaos.orders import Setup

SOON = 10.0
"""Seconds. It takes about 0.15 where nothing else runs, and up to 1.5 where a process is lost."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")


@pytest.fixture(scope="module", params=[(False, "shared"), (True, "memory")])
def cluster(request):
    overlap, channels = request.param
    with Cluster(Setup(stages=3, overlap=overlap, channels=channels)) as cluster:
        first = cluster.evaluate(Fault("none", 0))
        check_evaluation(3, first)
        yield cluster, {stage: outcome.sockets for stage, outcome in first.items()}


@pytest.mark.parametrize("kind", RECOVERABLE)
def test_a_fault_is_one_story_on_all_stages_and_the_next_evaluation_is_right(kind, cluster):
    processes, sockets = cluster
    chance = random.Random(kind)
    for _ in range(2):
        fault = Fault.draw(chance, 3, (kind,))
        outcomes = processes.evaluate(fault)
        check(fault, 3, outcomes)
        assert processes.seconds(outcomes) < SOON
        check_recovery(processes, sockets)


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize(("overlap", "channels"), [(False, "memory"), (True, "shared")])
def test_a_process_that_is_lost_is_named_by_all_others(kind, overlap, channels):
    chance = random.Random(f"{kind} {overlap}")
    stages = chance.choice([2, 4])
    with Cluster(Setup(stages, overlap, channels=channels)) as processes:
        check_evaluation(stages, processes.evaluate(Fault("none", 0)))
        fault = Fault.draw(chance, stages, (kind,))
        outcomes = processes.evaluate(fault)
        check(fault, stages, outcomes)
        assert processes.seconds(outcomes) < SOON


def test_a_failure_in_one_replica_is_told_in_all():
    told = {
        "short iterator": ("AgreementError", "the data of stage 1 of replica 1 ended after 2"),
        "layer raises": ("RemoteError", "stage 1 of replica 1 failed at "),
        "stopped": ("StalledError", "stage 1 of replica 1 gave no sign of life"),
        "killed": ("LostPeerError", "stage 1 of replica 1 ended without a word"),
    }
    expected = pytest.approx(loss_of_one_process(2), rel=1e-6)
    with Cluster(Setup(stages=2, replicas=2, overlap=True, timeout=1.5)) as processes:
        for kind, (error, text) in told.items():
            outcomes = processes.evaluate(Fault("none", 0))
            assert [outcome.loss for outcome in outcomes.values()] == [expected] * 4
            outcomes = processes.evaluate(Fault(kind, 3, 2))
            assert processes.seconds(outcomes) < SOON
            for rank in range(3):
                assert outcomes[rank].error == error, outcomes[rank]
                assert text in outcomes[rank].text
            if kind == "stopped":
                assert processes.resume(3).error == error


@pytest.mark.parametrize("channels", ["memory", "shared"])
def test_a_stopped_process_is_named_after_the_timeout_and_may_come_back(channels):
    with Cluster(Setup(stages=3, timeout=1.5, channels=channels)) as processes:
        first = processes.evaluate(Fault("none", 0))
        sockets = {stage: outcome.sockets for stage, outcome in first.items()}
        fault = Fault("stopped", 1, 2)
        outcomes = processes.evaluate(fault)
        check(fault, 3, outcomes)
        assert processes.seconds(outcomes) > 1.4
        assert processes.resume(1).failure == outcomes[0].failure
        check_recovery(processes, sockets)


def test_a_layer_that_never_returns_is_named_after_the_timeout():
    with Cluster(Setup(stages=2, timeout=1.5, overlap=True)) as processes:
        fault = Fault("hangs", 1, 0)
        check(fault, 2, processes.evaluate(fault))


@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_the_loss_of_the_store_and_its_process_is_an_error_too(kind):
    with Cluster(Setup(stages=3, timeout=1.5, store_on_rank_0=True)) as processes:
        check_evaluation(3, processes.evaluate(Fault("none", 0)))
        outcomes = processes.evaluate(Fault(kind, 0, 1))
        for outcome in outcomes.values():
            error = "LostPeerError" if kind == "killed" else "StalledError"
            assert outcome.error == error, outcome
            assert "the process that hosts it (the launcher, else the one of rank 0)" in (
                outcome.text
            )
        assert processes.seconds(outcomes) < SOON


def test_after_a_loss_evaluations_are_refused_at_once():
    with Cluster(Setup(stages=2)) as processes:
        fault = Fault("killed", 1, 1)
        first = processes.evaluate(fault)[0]
        again = processes.evaluate(fault)[0]
        assert again.error == "LostPeerError"
        assert again.failure == first.failure
        assert "start all again" in again.notes[0]


def test_no_process_is_left_behind():
    with Cluster(Setup(stages=2)) as processes:
        check_evaluation(2, processes.evaluate(Fault("none", 0)))
        pids = [process.pid for process in processes.processes]
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
