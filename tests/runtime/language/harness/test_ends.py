"""However a run of the harness ends, nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from runtime.language.harness import NAME
from tests.support.harness_tasks import GENERATION, OF_OWN_TASKS, write_tasks

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[4]
PATIENCE = 60.0
"""Seconds after which a process that has not ended hangs, for the tests."""


@pytest.fixture(scope="module")
def long_task(tmp_path_factory):
    """Much to generate, for longer than a test waits."""
    folder = write_tasks(tmp_path_factory.mktemp("long"), generations=2000)
    task = folder / f"{GENERATION}.yaml"
    task.write_text(task.read_text().replace('["a", "  "]', '["never"]').replace("12}", "40}"))
    return folder


@pytest.fixture
def harness(tiny_directory, long_task):
    """The harness, at work over two stages, in a process group of its own."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", OF_OWN_TASKS, "run", "--model", NAME),
            *("--model_args", f"pretrained={tiny_directory},stages=2,threads=1"),
            *("--tasks", GENERATION, "--include_path", str(long_task), "--batch_size", "auto"),
        ],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Ignored where the tests were started in the background, which is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    said = b""
    while b"Running generate_until requests:" not in said:
        some = os.read(process.stderr.fileno(), 4096)
        assert some, said.decode()
        said += some
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def require_gone(pids):
    end = time.monotonic() + PATIENCE
    while any(map(runs, pids)):
        assert time.monotonic() < end, f"processes {[pid for pid in pids if runs(pid)]} are left"
        time.sleep(0.02)


def test_a_killed_harness_takes_its_workers_with_it(harness):
    (worker,) = children(harness.pid)
    harness.kill()
    require_gone([harness.pid, worker])


def test_a_killed_worker_ends_the_harness_with_its_name(harness):
    (worker,) = children(harness.pid)
    os.kill(worker, signal.SIGKILL)
    _, said = harness.communicate(timeout=PATIENCE)
    require_gone([harness.pid, worker])
    assert harness.returncode == 1
    error = said.decode().strip().splitlines()[-1]
    assert error.endswith(
        f"WorkerError: stage 1 is gone: its process {worker} was ended by SIGKILL"
    )
    assert said.decode().count("Traceback") == 1


def test_ctrl_c_ends_the_harness_and_its_workers(harness):
    (worker,) = children(harness.pid)
    os.killpg(harness.pid, signal.SIGINT)
    _, said = harness.communicate(timeout=PATIENCE)
    require_gone([harness.pid, worker])
    assert harness.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said.decode()
    assert "WorkerError" not in said.decode()
