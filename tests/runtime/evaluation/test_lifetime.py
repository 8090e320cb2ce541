"""What the system gives for an evaluator is given back at once: descriptors, threads, memory."""

import gc
import os
import resource
import threading
import time
import weakref
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from runtime import Evaluator
from runtime.transport import Channels, TorchTransport
from tests.support.models_for_tests import batches, mlp, one_process
from tests.support.ranks import attempt, run_ranks

DATA = batches([2, 3, 1])
LARGE = 400
"""Samples of a micro-batch that a thread copies."""
LOSSES = one_process(mlp(), DATA)[1]


def evaluated(**options: Any) -> Evaluator:
    made = Evaluator(
        mlp(), loss_fn=nn.functional.mse_loss, partition="uniform", timeout=45.0, **options
    )
    assert list(made.evaluate(DATA).losses) == LOSSES
    return made


def held() -> tuple[int, list[str]]:
    """Descriptors and threads of this process, without those that are about to end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(0.2)
    counts = [-1, len(os.listdir("/proc/self/fd"))]
    while counts[-1] != counts[-2]:  # gloo closes its connections from a thread of its own
        time.sleep(0.1)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[-1], sorted(t.name for t in threading.enumerate())


def make_and_let_go(channels: Channels) -> dict[str, Any]:
    """What is held before, meanwhile, and after each way to let go."""
    evaluated(channels=channels).close()
    gc.collect()
    gc.disable()  # nothing is left to the collector
    found: dict[str, Any] = {"before": held()}
    made = evaluated(channels=channels)
    found["meanwhile"] = held()
    del made
    found["dropped"] = held()
    made = evaluated(channels=channels)
    made.close()
    made.close()
    found["closed"] = held()
    with evaluated(channels=channels) as made:
        pass
    found["left"] = held()
    found["said"] = {attempt(method).text for method in _methods(made)}
    return found


def _methods(made: Evaluator) -> list[Any]:
    return [
        lambda: made.evaluate(DATA),
        lambda: made.eval_batch(DATA, num_micro_batches=3),
        lambda: made.save_state_dict("nowhere"),
        lambda: made.load_state_dir("nowhere"),
    ]


@pytest.mark.parametrize("channels", ["memory", "shared", "per-edge"])
def test_an_evaluator_that_is_let_go_of_leaves_nothing_behind(channels):
    for found in run_ranks(2, make_and_let_go, channels):
        assert found["meanwhile"][0] > found["before"][0]
        assert found["dropped"] == found["closed"] == found["left"] == found["before"]
        assert found["before"][1] == ["MainThread"]
        assert found["said"] == {"the evaluator was closed, needed an open one: make another"}


def make_many(_: None) -> int:
    """More evaluators, one after the other, than there are descriptors for."""
    few = len(os.listdir("/proc/self/fd")) + 60
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    for _ in range(20):
        evaluated()
    return few


def test_evaluators_can_be_made_again_and_again():
    assert all(isinstance(few, int) for few in run_ranks(2, make_many))


def close_with_a_transport_of_its_own(_: None) -> list[float]:
    """A transport that was given outlives the evaluators that use it."""
    transport = TorchTransport()
    for _ in range(2):
        with evaluated(transport=transport) as made:
            losses = list(made.evaluate(DATA).losses)
    transport.close()
    said = attempt(lambda: evaluated(transport=transport))
    assert (said.error, said.text) == ("TransportError", "the transport was closed")
    dist.barrier()  # the caller's own group is whole
    return losses


def test_a_transport_that_was_given_stays_open():
    assert run_ranks(2, close_with_a_transport_of_its_own) == [LOSSES, LOSSES]


def test_an_evaluator_of_one_process_closes_as_well():
    with evaluated(stages=1) as made:
        pass
    with pytest.raises(ValueError, match="the evaluator was closed, needed an open one"):
        made.evaluate(DATA)


def fork_and_end(_: None) -> list[float]:
    """A forked process ends as programs do, and as if it had dropped what it inherited."""
    made = evaluated()
    child = os.fork()
    if child == 0:
        try:
            made._lifetime._free()
            weakref.finalize._exitfunc()  # what is registered for the end of a program
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    dist.barrier()
    return list(made.evaluate(DATA).losses)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_ends_nothing_of_its_parent():
    assert run_ranks(2, fork_and_end) == [LOSSES, LOSSES]
