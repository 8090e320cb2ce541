"""Kill a process at random moments of a save, and look at what it leaves.

`python -m tests.tools.kill_saves --saves 100`: after every kill, the directory must hold the former
checkpoint or the new one, whole and bit-identical. Exit status 0 if it always does.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from runtime.checkpoint import NativeCheckpoint
from tests.support.checkpoints import assert_same, load, save, state_of

GRID = {"stages": 2, "replicas": 2}
BOUND = 60.0
"""Seconds that a save may take before it counts as hanging."""


def model(number: int) -> list[nn.Module]:
    """Twelve layers of 0.25 MiB, of their own for every number."""
    generator = torch.Generator().manual_seed(number)
    layers: list[nn.Module] = [nn.Linear(256, 256) for _ in range(12)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
    return layers


def save_and_be_killed(directory: Path, number: int, seconds: float) -> None:
    """Save model `number` in a process of its own, which is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            save(directory, lambda: model(number), **GRID)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def what_is_left(directory: Path, old: int, new: int) -> str:
    """Load the checkpoint, compare it with the two that it may be, and say how far the save got."""
    unfinished = [path for path in directory.glob("save-*") if path.name != committed(directory)]
    files = sum(len(list(path.iterdir())) for path in unfinished)
    found = load(directory, lambda: model(-1))
    try:
        assert_same(found, state_of(model(old)))
    except AssertionError:
        assert_same(found, state_of(model(new)))
        return "new, before former files were removed" if unfinished else "new"
    return f"old, {'while layers were written' if files else 'before the first layer'}"


def committed(directory: Path) -> str:
    return NativeCheckpoint(directory).manifest.directory


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        directory, old = Path(place), 0
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            save(directory, lambda: model(0), **GRID)
            seconds.append(time.perf_counter() - began)
        for new in range(1, options.saves + 1):
            save_and_be_killed(directory, new, chance.uniform(0, 1.3 * max(seconds)))
            outcome = what_is_left(directory, old, new)
            outcomes[outcome] += 1
            old = new if outcome.startswith("new") else old
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5} {outcome}")


if __name__ == "__main__":
    main()
