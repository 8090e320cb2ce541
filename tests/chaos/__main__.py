"""`python -m tests.chaos N`: N random faults in real processes, and how long each took to be told.

What can be recovered from happens again and again in the same processes; what cannot needs new
ones.
"""

import os
import random
import sys
import time
from collections import defaultdict
from typing import get_args

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from runtime.transport import Channels
from tests.chaos.cluster import Cluster, Setup
from tests.chaos.expectations import check, check_evaluation, check_recovery
from tests.chaos.faults import LOST, RECOVERABLE, STALLED, Fault

ROUNDS = 8
"""Recoverable faults in the same processes, before one that is not."""

TIMEOUT = 1.5


def chaos(count: int, seed: int) -> dict[str, list[float]]:
    """Let `count` faults happen: seconds from each to the last stage's error, by kind."""
    chance = random.Random(seed)
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    done = 0
    while done < count:
        channels = chance.choice(get_args(Channels))
        setup = Setup(chance.choice([2, 3, 4]), chance.random() < 0.5, TIMEOUT, channels=channels)
        with Cluster(setup) as cluster:
            first = cluster.evaluate(Fault("none", 0))
            check_evaluation(setup.stages, first)
            sockets = {stage: outcome.sockets for stage, outcome in first.items()}
            for number in range(ROUNDS + 1):
                kinds = RECOVERABLE if number < ROUNDS else (*LOST, *STALLED)
                fault = Fault.draw(chance, setup.stages, kinds)
                outcomes = cluster.evaluate(fault)
                check(fault, setup.stages, outcomes)
                seconds[fault.kind].append(cluster.seconds(outcomes))
                if fault.kind == "stopped":
                    assert cluster.resume(fault.stage).error == "StalledError"
                if fault.kind in RECOVERABLE or fault.kind == "stopped":
                    check_recovery(cluster, sockets)
                done += 1
    return seconds


def main() -> None:
    """Print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    seconds = chaos(count, seed)
    print(f"{'fault':20} times    median s   max s  (the timeout of a stall is {TIMEOUT} s)")
    for kind, values in sorted(seconds.items()):
        ordered = sorted(values)
        print(f"{kind:20} {len(ordered):5} {ordered[len(ordered) // 2]:11.3f} {ordered[-1]:7.3f}")
    total = sum(map(len, seconds.values()))
    print(f"{total} faults, all as they should be, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
