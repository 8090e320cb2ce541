"""Two replicas as processes: both write, and one that is killed takes no checkpoint with it."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from runtime import Evaluator
from runtime.checkpoint import save as saving
from runtime.distributed.process_group import process_group
from runtime.distributed.processes import WorkerError
from runtime.transport import TorchTransport
from tests.support.checkpoints import assert_same, load, model, state_of
from tests.support.forks import launch_forks


def save_then_be_killed(directory: str) -> None:
    """Save and load over two replicas; then save again, and lose one process on the way."""
    torch.set_num_threads(1)
    with process_group(timedelta(seconds=60)) as device:
        alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
        transport = TorchTransport(alone[dist.get_rank()], device=device, replicas=dist.group.WORLD)
        written: list[str] = []
        original = saving.write_tensors
        saving.write_tensors = lambda path, tensors: (
            written.append(path.name) or original(path, tensors)
        )
        evaluator = Evaluator(model(), transport=transport)
        manifest = evaluator.save_state_dict(directory)
        shares = transport.gather_from_replicas(written)
        assert all(shares)
        assert sorted(name for share in shares for name in share) == sorted(
            layer.file for layer in manifest.layers if layer.file is not None
        )

        other = Evaluator(model(seed=1), transport=transport)
        other.load_state_dir(directory)
        assert_same(state_of(list(other.module)), state_of(model()))

        if transport.replica == 1:
            saving.write_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Evaluator(model(seed=2), transport=transport).save_state_dict(directory)


def test_a_process_that_is_killed_while_it_writes_leaves_the_former_checkpoint(tmp_path: Path):
    with pytest.raises(WorkerError, match="stage 1 failed: its process was ended by SIGKILL"):
        launch_forks(2, save_then_be_killed, str(tmp_path))
    assert_same(load(tmp_path), state_of(model()))
