"""Rows 4 and 5: faults on one of two ranks; what both get, and whether they stay alive."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu.context import Context
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import Answer, run_ranks
from benchmarks.gpu.report import Found
from benchmarks.gpu.workload import data, differing, layers, one_process
from runtime import Evaluator
from runtime.transport import TorchTransport
from runtime.transport.torch_distributed.groups import process_groups

MICRO_BATCHES = 8
FAULTY = 1
"""The rank at fault, which is the last stage."""
GOES_ON = ("raise",)
"""Faults after which both ranks evaluate again."""
EXPECTED = {
    "raise": ("RemoteError",),
    "kill": ("LostPeerError",),
    "stop": ("StalledError", "LostPeerError"),
    "endless kernel": ("StalledError", "LostPeerError"),
}
"""What the other rank may get."""


class Job(NamedTuple):
    """What to do to whom."""

    fault: str
    timeout: float
    """Of an evaluation in which nothing moves."""
    alive: float
    """Seconds for which who is left has to stay alive: torch's watchdog ends processes later."""


class Faulty(nn.Module):
    """A layer that does something else at its third forward, once."""

    def __init__(self, layer: nn.Module, machine: Machine, job: Job) -> None:
        """Do what `job` says."""
        super().__init__()
        self.layer, self._machine, self._job, self._forwards = layer, machine, job, 0

    def forward(self, x: torch.Tensor) -> Any:
        """What the layer returns, mostly."""
        self._forwards += 1
        if self._forwards == 3:
            fault = self._job.fault
            if fault == "raise":
                raise ArithmeticError("on purpose")
            if fault == "endless kernel":
                self._endless()
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        return self.layer(x)

    def _endless(self) -> None:
        if self._machine.dry:
            time.sleep(4 * self._job.timeout)
        else:
            for _ in range(3):
                self._machine.busy(self._job.timeout)


def failures(context: Context) -> Found:
    """All faults at once, each in a pipeline of its own."""
    timeout, alive, patience = (1.5, 0.2, 20.0) if context.machine.dry else (8.0, 70.0, 110.0)
    jobs = [Job(fault, timeout, alive) for fault in EXPECTED]
    run = partial(_run, context, patience=patience)
    with ThreadPoolExecutor(len(jobs)) as threads:
        answers = dict(zip(EXPECTED, threads.map(run, jobs), strict=True))
    held = all(_as_expected(fault, *found) for fault, found in answers.items())
    return Found(held, [f"{fault}: {_told(*found)}" for fault, found in answers.items()])


def _run(context: Context, job: Job, *, patience: float) -> list[Answer]:
    silent = (FAULTY,) if job.fault == "stop" else ()
    machine, approach = context.machine, context.approach
    return run_ranks(2, _evaluates_twice, job, machine, approach, patience, silent)


def _as_expected(fault: str, healthy: Answer, faulty: Answer) -> bool:
    if healthy.ended or healthy.error or healthy.value["error"] not in EXPECTED[fault]:
        return False
    if fault not in GOES_ON:
        return True
    return not (faulty.ended or faulty.error) and healthy.value["again"] == faulty.value["again"]


def _told(healthy: Answer, faulty: Answer) -> str:
    return f"rank 0 {_one(healthy)}; rank {FAULTY}, where it happened, {_one(faulty)}"


def _one(answer: Answer) -> str:
    if answer.ended or answer.error:
        return str(answer)
    found = answer.value
    return f"got {found['error']} after {found['seconds']:.1f} s, then {found['again']}"


def _evaluates_twice(machine: Machine, job: Job) -> dict[str, Any]:
    """What an evaluation with a fault raised, and what came of the next one."""
    transport = TorchTransport(device=machine.device)
    plain, pairs = layers(2), data(MICRO_BATCHES)
    expected = one_process(plain, pairs, machine.device)
    faulty = [plain[0], Faulty(plain[1], machine, job)]
    with Evaluator(
        faulty,
        loss_fn=nn.functional.mse_loss,
        partition="uniform",
        transport=transport,
        timeout=job.timeout,
    ) as evaluator:

        def evaluate() -> Any:
            return evaluator.eval_batch(
                iter(pairs), return_logits=True, num_micro_batches=MICRO_BATCHES, logits_to="all"
            )

        began = time.monotonic()
        error = "no error"
        try:
            evaluate()
        except Exception as caught:
            error = type(caught).__name__
        seconds = time.monotonic() - began
        again = "stayed alive"
        if job.fault in GOES_ON:
            again = "the same bits" if not differing(evaluate(), expected) else "other bits"
        time.sleep(job.alive)
        if job.fault in GOES_ON and differing(evaluate(), expected):
            again = "other bits later"
    return {"error": error, "seconds": seconds, "again": again}


def connecting(context: Context) -> Found:
    """A rank is killed while groups are made: the other one is not left waiting."""
    timeout = 1.5 if context.machine.dry else 6.0
    healthy, _ = run_ranks(
        2, _killed_while_connecting, timeout, context.machine, context.approach, 32.0
    )
    told = "ended, or still waits after 32 s" if healthy.ended else str(healthy)
    return Found(told.startswith("got "), [f"rank 0 {told}"])


def _killed_while_connecting(machine: Machine, timeout: float) -> str:
    if dist.get_rank() == FAULTY:

        def dies(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        vars(process_groups)["new_group"] = dies  # which the others call, to connect to this rank
    transport = TorchTransport(device=machine.device, channels="shared")
    began = time.monotonic()
    try:
        Evaluator(
            layers(2),
            loss_fn=nn.functional.mse_loss,
            partition="uniform",
            transport=transport,
            timeout=timeout,
        ).eval_batch(iter(data(2)), num_micro_batches=2)
    except Exception as error:
        seconds = time.monotonic() - began
        return f"got {type(error).__name__} after {seconds:.1f} s: {str(error).splitlines()[0]}"
    return "went on"
