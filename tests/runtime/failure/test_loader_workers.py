"""Workers that load data are forks of a rank: they may fail, be killed, or outlive it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from runtime import Evaluator
from runtime.distributed import processes
from runtime.distributed.processes import WorkerError, launch
from tests.support.forks import Program
from tests.support.models_for_tests import batches, mlp
from tests.support.ranks import Said, attempt, run_ranks

ROWS, AT = 40, 9
SECONDS = 60
"""More than any of this may take."""

DATA = batches([2, 1, 2])


class Rows(Dataset[Any]):
    """Rows of data; `act` is done with one of them."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        if row == AT:
            self._act()
        return torch.full((4,), row / ROWS), torch.zeros(6)


class Kills(nn.Module):
    """A layer that kills the process of which a file tells, as soon as it does."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.file.exists():
            time.sleep(0.5)  # the other stage waits for this one by now
            ended(self.file)
            self.file.unlink()
            time.sleep(0.5)
        return x


def loader(act: Callable[[], None]) -> DataLoader[Any]:
    """With a worker on each rank, which does `act` on the first one."""
    rows = Rows(act if dist.get_rank() == 0 else lambda: None)
    return DataLoader(rows, batch_size=2, num_workers=1, multiprocessing_context="fork")


def evaluator(*behind: nn.Module) -> Evaluator:
    """Of stages that are not far behind their loader: a worker that has made all may be killed."""
    layers = [*mlp(2), *behind]
    boundaries = [0, 1, len(layers)]
    loss_fn = nn.functional.mse_loss
    return Evaluator(layers, loss_fn=loss_fn, partition=boundaries, prefetch=1)


def raise_there() -> None:
    raise ArithmeticError("row 9 is odd")


def fail_with_workers(folder: Path) -> tuple[Said, Said, float]:
    """A worker raises, another one is killed, and then there are none."""
    file = folder / "worker"
    piped = evaluator(Kills(file))

    def note() -> None:
        file.write_text(str(os.getpid()))
        time.sleep(0.5)  # the run begins with what was there before

    raised = attempt(lambda: piped.evaluate(loader(raise_there)))
    killed = attempt(lambda: piped.evaluate(loader(note)))
    return raised, killed, piped.evaluate(DATA).loss


def test_a_worker_that_raises_or_is_killed_is_told_as_the_failure_of_its_rank(tmp_path):
    (raised, killed, loss), (told, of_killed, same) = run_ranks(2, fail_with_workers, tmp_path)
    assert raised.error == "ArithmeticError", raised
    assert "row 9 is odd" in raised.text
    assert told.error == "RemoteError"
    assert told.text.startswith("stage 0 failed at the fetching of micro-batches: ArithmeticError")
    assert killed.error == "RuntimeError", (killed, of_killed)
    assert killed.text.startswith("DataLoader worker (pid")
    assert of_killed.error == "RemoteError"
    assert "RuntimeError: DataLoader worker (pid" in of_killed.text.splitlines()[0]
    assert loss == same


def lose_the_reader(folder: Path) -> tuple[Said, bool]:
    """The first rank is killed by its own worker, which stays until the other rank has noticed."""
    file = folder / "orphan"

    def kill_parent() -> None:
        file.write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(SECONDS)

    said = attempt(lambda: evaluator().evaluate(loader(kill_parent)))
    return said, ended(file)


def ended(file: Path) -> bool:
    """Kill the process of which a file tells; whether it was there."""
    with suppress(ProcessLookupError):
        os.kill(int(file.read_text()), signal.SIGKILL)
        return True
    return False


def test_a_rank_that_is_killed_is_missed_though_its_worker_lives(tmp_path):
    gone, (said, lived) = run_ranks(2, lose_the_reader, tmp_path)
    assert gone is None
    assert said.error == "LostPeerError"
    assert said.text.startswith("stage 0 ended without a word")
    assert lived


def kill_a_rank_that_has_forked(file: Path) -> None:
    """Of a run of one rank; what it started lives on."""
    child = os.fork()
    if child == 0:
        time.sleep(SECONDS)
        os._exit(0)
    file.write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def launch_and_lose(file: Path) -> None:
    """Start a run whose only rank is killed."""
    signal.alarm(SECONDS // 2)  # which ends a process that waits for the orphan
    processes.END_SECONDS = SECONDS
    with pytest.raises(WorkerError, match="its process was ended by SIGKILL"):
        launch(1, kill_a_rank_that_has_forked, file, start_method="fork")
    assert ended(file)


def test_a_run_ends_with_its_rank_though_what_that_has_forked_lives(tmp_path):
    launched = Program(launch_and_lose, tmp_path / "orphan").ended()
    assert launched.returncode == 0, launched.stderr
