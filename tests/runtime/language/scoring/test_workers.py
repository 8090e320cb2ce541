"""Processes that a scorer has started: what is said of those that end."""

import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import pytest

from runtime.failure.errors import LostPeerError, RemoteError
from runtime.failure.report import Failure
from runtime.language.scoring.worker import Failed, WorkerError, Workers, send

LOST = Failure(kind="lost", reporter=0, name="stage 2", at="step 1", reason="stage 2 is gone")


@pytest.fixture
def two():
    """Two processes that wait, and this test's end of what they would answer with."""
    workers, ends = Workers(), []
    for _ in range(2):
        ours, theirs = socket.socketpair()
        workers.connections.append(Connection(ours.detach()))
        ends.append(Connection(theirs.detach()))
        program = "import sys; sys.stdin.read()"
        waiting = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        workers._processes.append(waiting)
    processes = list(workers._processes)
    yield workers, ends, processes
    for end, process in zip(ends, processes, strict=True):
        end.close()
        process.stdin.close()
    workers.end()


def test_a_process_that_was_killed_is_named_before_one_that_saw_it_go(two):
    workers, ends, processes = two
    send(ends[0], Failed("LostPeerError: stage 2 is gone", "Traceback"))
    processes[1].kill()
    for end in ends:
        end.close()
    reason = workers.reason(LostPeerError(LOST))
    assert isinstance(reason, WorkerError)
    pid = processes[1].pid
    assert str(reason) == f"stage 2 is gone: its process {pid} was ended by SIGKILL"


def test_a_process_that_failed_is_named_with_its_traceback(two):
    workers, ends, _ = two
    send(ends[1], Failed("MemoryError: no room", "Traceback of stage 2"))
    with pytest.raises(WorkerError, match="stage 2 failed: MemoryError: no room") as raised:
        workers.receive(2)
    assert raised.value.__notes__ == ["Traceback of stage 2"]
    send(ends[1], None)
    workers.receive(2)


def test_an_exception_on_another_stage_stays_what_it_is(two):
    workers, _, _ = two
    error = RemoteError(LOST)
    assert workers.reason(error) is error


def test_what_does_not_end_by_itself_is_killed(two):
    workers, _, processes = two
    workers.end()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    workers.end()


def test_one_that_is_gone_is_named_before_others_are_so_far(two):
    workers, ends, processes = two
    processes[1].kill()
    ends[1].close()
    with pytest.raises(WorkerError, match=r"stage 2 is gone: its process \d+ was ended by SIGKILL"):
        next(workers.as_they_come())
    send(ends[0], None)
    assert next(workers.as_they_come()) == 1


def test_a_worker_ends_with_the_process_that_started_it_while_it_imports(tmp_path):
    """The thread that sees to it needs nothing that takes long to import."""
    kept = tmp_path / "run"
    kept.mkdir()
    ours, theirs = socket.socketpair()
    program = (
        "import sys, time; from runtime.lifeline import end_with; "
        f"end_with({theirs.fileno()}, {str(kept)!r}); print(*sys.modules); sys.stdout.flush(); "
        "time.sleep(60)"
    )
    with theirs:
        worker = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, pass_fds=[theirs.fileno()]
        )
    assert worker.stdout is not None
    modules = worker.stdout.readline().decode().split()
    assert not {"torch", "transformers", "numpy", "pydantic"} & set(modules)
    ours.close()
    assert worker.wait(30) == 0
    assert not kept.exists()


def test_a_message_to_a_process_that_is_gone_names_it(two):
    workers, ends, processes = two
    processes[0].kill()
    processes[0].wait()
    ends[0].close()
    with pytest.raises(WorkerError, match=r"stage 1 is gone: its process \d+ was ended by SIGKILL"):
        workers.send(1, "x")
