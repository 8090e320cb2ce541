"""A save that ends at any moment leaves the former checkpoint whole, or the new one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime import Evaluator
from runtime.checkpoint import CheckpointError
from runtime.checkpoint import save as saving
from runtime.checkpoint import write as writing
from tests.support.checkpoints import assert_same, load, model, on_grid, save, state_of
from tests.support.paths import ROOT


class Killed(BaseException):
    """Ends a save on the spot, as nothing that handles errors would."""


def save_until(directory: Path, seed: int, moment: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Save, and be killed at the `moment`-th change of the disk; False: it ended before that."""
    moments = iter(range(moment))

    def killing(original):
        def call(*arguments, **options):
            if next(moments, None) is None:
                raise Killed
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_file", killing(writing.save_file))
        patch.setattr(writing, "synchronise", killing(writing.synchronise))
        patch.setattr(writing.Path, "rename", killing(Path.rename))
        patch.setattr(writing.shutil, "rmtree", killing(writing.shutil.rmtree))
        patch.setattr(saving, "_make", killing(saving._make))
        try:
            save(directory, lambda: model(seed))
        except Killed:
            return True
    return False


def test_a_save_that_is_killed_at_any_of_its_steps_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    save(tmp_path, lambda: model(0))
    seen = []
    for moment in range(100):
        if not save_until(tmp_path, 1, moment, monkeypatch):
            break
        found = load(tmp_path)
        is_new = torch.equal(found["0.weight"], model(1)[0].weight)
        assert_same(found, state_of(model(1 if is_new else 0)))
        seen.append(is_new)
        if is_new:
            save(tmp_path, lambda: model(0))
    assert seen == sorted(seen)  # old until the commit, new from then on
    assert seen.count(False) > 10
    assert seen.count(True) >= 1
    assert_same(load(tmp_path), state_of(model(1)))
    assert len(list(tmp_path.iterdir())) == 2  # what the killed ones left is gone


def test_a_first_save_that_is_killed_is_no_checkpoint(tmp_path, monkeypatch):
    assert save_until(tmp_path, 0, 5, monkeypatch)
    assert list(tmp_path.glob("save-*/*"))
    with pytest.raises(CheckpointError, match=r"holds no checkpoint"):
        load(tmp_path)


def test_processes_killed_at_random_moments_leave_the_old_or_the_new():
    command = [sys.executable, "-m", "tests.tools.kill_saves", "--saves", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sum(map(int, re.findall(r"^ *(\d+) (?:old|new)", done.stdout, re.M))) == 8


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ArithmeticError("bug")])
def test_an_error_of_one_rank_ends_the_save_on_all_and_keeps_the_old(tmp_path, monkeypatch, error):
    save(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    original = writing.save_file

    def failing(tensors, path, **options):
        if path.name == "layer_03.safetensors":
            raise error
        original(tensors, path, **options)

    monkeypatch.setattr(writing, "save_file", failing)

    def call(evaluator: Evaluator) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (the kind differs by rank)
            evaluator.save_state_dict(tmp_path)
        return f"{type(caught.value).__name__}: {caught.value}"

    messages = on_grid(lambda: model(1), call, stages=3, replicas=2)
    if isinstance(error, OSError):
        assert len(set(messages)) == 1
        assert re.search(r"layer_03\.safetensors cannot be written: .*No space left", messages[0])
    else:
        assert sum(message == "ArithmeticError: bug" for message in messages) == 1
        assert sum("RemoteError: stage 1 of replica" in message for message in messages) == 5
    assert sorted(tmp_path.rglob("*")) == before
    assert_same(load(tmp_path), state_of(model()))


def test_ranks_that_do_not_see_each_others_files_do_not_commit(tmp_path: Path):
    save(tmp_path)

    def call(evaluator: Evaluator) -> str:
        own = tmp_path if evaluator.is_first else tmp_path / f"node-{evaluator.stage_id}"
        with pytest.raises(CheckpointError) as caught:
            evaluator.save_state_dict(own)
        return str(caught.value)

    layers = lambda: [nn.Linear(2, 2), nn.Linear(2, 2)]  # noqa: E731
    first, second = on_grid(layers, call, stages=2)
    assert first == second
    assert re.match(r"layer 1: .*layer_01.safetensors is not there .* same file system", first)
    assert_same(load(tmp_path), state_of(model()))
