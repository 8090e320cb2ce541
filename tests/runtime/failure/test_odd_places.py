"""Failures in odd places: errors that are hard to tell, phases outside a run, two at once."""

import os
import random
import resource
from collections.abc import Iterator
from contextlib import suppress

import pytest
from torch import nn

from runtime import Evaluator
from runtime.failure.detection.periodic import PeriodicTask
from runtime.transport.private_store import PrivateStore
from runtime.transport.rendezvous import MOST_LEFT
from runtime.transport.reserve import hold
from tests.chaos.cluster import Cluster
from tests.chaos.expectations import check, check_evaluation, check_recovery
from tests.chaos.faults import Fault, Kind
from tests.chaos.odd_errors import ODD_ERRORS
from tests.chaos.orders import Setup
from tests.chaos.scenarios import Trial
from tests.support.forks import Program
from tests.support.models_for_tests import batches, mlp, over_stages
from tests.tools.soak import SLACK, run

TIMEOUT = 5.0
"""Seconds; a fault holds the interpreter for 0.8 of them, and the machine may be busy."""

Started = tuple[Cluster, dict[int, int]]


def started(cluster: Cluster) -> Started:
    first = cluster.evaluate(Fault("none", 0))
    check_evaluation(cluster.setup.stages, first)
    return cluster, {rank: outcome.sockets for rank, outcome in first.items()}


@pytest.fixture(scope="module")
def private() -> Iterator[Started]:
    """Three processes that meet in a directory, as those of a run on one machine."""
    with Cluster(Setup(3, overlap=True, timeout=TIMEOUT, private=True)) as cluster:
        yield started(cluster)


@pytest.mark.parametrize("kind", [*ODD_ERRORS, "no descriptors", "holds the interpreter"])
def test_an_error_that_is_hard_to_tell_is_told(kind, private):
    cluster, sockets = private
    fault = Fault(kind, random.Random(kind).randrange(3), 2)
    check(fault, 3, cluster.evaluate(fault))
    check_recovery(cluster, sockets)


@pytest.mark.parametrize("phase", ["opening", "saving", "loading"])
@pytest.mark.parametrize("kind", ["raises", "interrupted", "stopped"])
def test_a_failure_outside_a_run_is_one_story_and_the_next_run_is_right(kind, phase, private):
    cluster, sockets = private
    Trial(cluster, random.Random(f"{kind} {phase}"), sockets).in_phase(kind, phase)


@pytest.mark.parametrize(("beside", "telling"), [("raises", False), ("interrupted", True)])
def test_two_failures_at_once_are_one_story(beside, telling, private):
    cluster, sockets = private
    trial = Trial(cluster, random.Random(1), sockets)
    trial.two("layer raises", beside, telling=telling)
    trial.two("text raises", beside, telling=telling)


@pytest.mark.parametrize("kind", ["crashes", "killed"])
def test_a_process_that_ends_while_it_tells_of_a_failure_is_missed_next(kind: Kind):
    with Cluster(Setup(2, timeout=TIMEOUT)) as cluster:
        _, sockets = started(cluster)
        trial = Trial(cluster, random.Random(2), sockets)
        trial.two("layer raises", kind, telling=True)
        assert trial.over


def test_a_rank_that_can_start_no_thread_says_so_to_all(monkeypatch):
    def call(evaluator: Evaluator) -> str:
        if evaluator.rank == 1:
            monkeypatch.setattr(evaluator._guard._heartbeat_thread, "start", refuse)
        with pytest.raises(RuntimeError) as caught:
            evaluator.evaluate(iter(batches([1, 2])))
        return str(caught.value)

    def refuse(_: PeriodicTask) -> None:
        raise RuntimeError("can't start new thread")

    told, own = over_stages(2, call, layers=lambda: mlp(2), loss_fn=nn.functional.mse_loss)
    assert own == "can't start new thread"
    assert told.startswith("stage 1 failed at the start of the evaluation: RuntimeError: can't st")


def use_up_descriptors(directory: str) -> None:
    """Use a store in a process that has opened all that it may."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    store = PrivateStore(directory)
    hold()
    files = []
    with suppress(OSError):
        while True:
            files.append(open(os.devnull))  # noqa: SIM115
    for number in range(3):
        assert store.compare_set("failure", "", f"{number}") == b"0"
        store.set("heartbeat", str(number))
        assert store.get("heartbeat") == str(number).encode()
        assert store.add("count", 1) == number + 1


def test_a_private_store_works_without_a_descriptor_left(tmp_path):
    ended = Program(use_up_descriptors, str(tmp_path)).ended()
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_nothing_grows_with_evaluations_failures_and_evaluators():
    # So short a run has fewer evaluators than the store remembers, and few measurements of what
    # comes and goes with a failure. One descriptor or thread in 20 evaluations makes 7 more.
    limits = SLACK | {"keys": SLACK["keys"] + 4 * MOST_LEFT, "descriptors": 6.0, "threads": 4.0}
    for rank, rose, found in run(evaluations=160, long=2000):
        assert not {name: rose[name] for name in limits if rose[name] > limits[name]}, rank
        assert found[-1].memory - found[-2].memory <= SLACK["memory"], (rank, found[-2:])
