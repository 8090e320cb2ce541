"""Signals, losses and wrong environments of `pipeval`: all ends in time, with one sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest
import torch

from runtime.device import DeviceError
from runtime.distributed.process_group import LaunchError, process_group, require_environment
from runtime.distributed.signals import ending_at_once
from tests.support.forks import launch_forks

PATIENCE = 120.0
"""Seconds until processes have started, on a machine that does much else."""

ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from runtime.cli.exits import exit_for
from runtime.distributed.processes import Terminated, launch

def work(directory):
    Path(directory, f"{os.environ['RANK']} {os.getpid()}").touch()
    time.sleep(3600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background
    try:
        launch(2, work, sys.argv[1], start_method="fork")
    except BaseException as error:
        end = exit_for(error, running=True)
        print(end.message, file=sys.stderr, flush=True)
        os._exit(end.status)
"""


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "to_all", "status", "line"),
    [
        (signal.SIGINT, True, 130, "interrupted\n"),  # Ctrl-C reaches every process of a terminal
        (signal.SIGTERM, False, 143, "terminated\n"),
        (signal.SIGKILL, False, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_ends_all_processes_with_one_line(number, to_all, status, line, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = [sys.executable, str(program), str(tmp_path)]
    path = os.pathsep.join([os.getcwd(), *sys.path])
    with subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        until(lambda: len(list(tmp_path.glob("[01] *"))) == 2, "the workers did not start")
        workers = [int(file.name.split()[1]) for file in tmp_path.glob("[01] *")]
        began = time.monotonic()
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE)
        until(lambda: not any(map(exists, workers)), "a worker was left behind")
        assert time.monotonic() - began < 20  # about 0.2 where nothing else runs
    assert (process.returncode, errors) == (status, line)


def stop(_: None) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    raise ArithmeticError("here")


def test_a_stopped_process_does_not_keep_the_launcher_waiting():
    with pytest.raises(RuntimeError, match="stage 0 failed: ArithmeticError: here"):
        launch_forks(2, stop, None)


def test_a_rank_blocked_in_a_call_ends_at_once_on_a_signal():
    for number, said in ((signal.SIGINT, b"bye\n"), (signal.SIGTERM, b"")):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with ending_at_once("bye"):
                os.write(writer, b"ready\n")
                signal.pthread_sigmask(signal.SIG_BLOCK, [])
                while True:
                    time.sleep(3600)
        os.close(writer)
        assert os.read(reader, 6) == b"ready\n"
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + number
        assert os.read(reader, 100) == said
        os.close(reader)


def test_signal_handlers_are_put_back():
    def handler(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with ending_at_once(None):
            assert signal.getsignal(signal.SIGTERM) is not handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("changes", "stages", "message"),
    [
        ({"MASTER_PORT": None}, None, "MASTER_PORT is not set, needed a number (torchrun sets it)"),
        ({"MASTER_PORT": "http"}, None, "MASTER_PORT is 'http', needed a number"),
        ({"MASTER_ADDR": None}, None, "MASTER_ADDR is not set, needed the address of rank 0"),
        ({"WORLD_SIZE": None}, None, "WORLD_SIZE is not set, needed a number"),
        ({"RANK": "2"}, None, "RANK is 2 and WORLD_SIZE 2, needed 0 <= RANK < WORLD_SIZE"),
        ({}, 3, "3 stages, but the launcher started 2 processes (WORLD_SIZE), needed one for each"),
    ],
)
def test_a_wrong_environment_is_one_sentence(changes, stages, message, monkeypatch):
    for name, value in (ENVIRONMENT | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError) as caught:
        require_environment(stages)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fewer_gpus_than_ranks_are_one_sentence(monkeypatch):
    for name, value in (ENVIRONMENT | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="2 processes on a machine with 1 GPUs"), process_group():
        raise AssertionError
