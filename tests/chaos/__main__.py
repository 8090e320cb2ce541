"""`python -m tests.chaos N`: N random faults in real processes, and how long each took to be told.

What can be recovered from happens again and again in the same processes; what cannot needs new
ones. Where network namespaces can be made, some of the processes are on two hosts.
"""

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from runtime.transport import Channels
from tests.chaos.cluster import Cluster, Setup
from tests.chaos.expectations import check_evaluation
from tests.chaos.faults import Fault
from tests.chaos.scenarios import Trial
from tests.support.hosts import Hosts, missing

ROUNDS = 8
"""Recoverable faults in the same processes, before one that is not."""

TIMEOUT = 1.5
PRIVATE_SHARE = 0.3
HOSTS_SHARE = 0.3


@contextmanager
def cluster_of(chance: random.Random) -> Iterator[Cluster]:
    """Two to four processes that are connected in any way."""
    stages, overlap = chance.choice([2, 3, 4]), chance.random() < 0.5
    channels = chance.choice(get_args(Channels))
    if chance.random() < PRIVATE_SHARE:
        with Cluster(Setup(stages, overlap, TIMEOUT, private=True)) as cluster:
            yield cluster
        return
    if missing() or chance.random() > HOSTS_SHARE:
        with Cluster(Setup(stages, overlap, TIMEOUT, channels=channels)) as cluster:
            yield cluster
        return
    with Hosts(2) as hosts:
        namespaces = tuple(hosts.namespace(2 * rank // stages) for rank in range(stages))
        setup = Setup(
            stages,
            overlap,
            TIMEOUT,
            channels=channels,
            namespaces=namespaces,
            address=hosts.addresses[0],
        )
        with Cluster(setup) as cluster:
            yield cluster


def chaos(count: int, seed: int, seconds: dict[str, list[float]]) -> None:
    """Let `count` faults happen; add the seconds from each to the last stage's error, by kind."""
    chance = random.Random(seed)
    left = count
    while left:
        with cluster_of(chance) as cluster:
            first = cluster.evaluate(Fault("none", 0))
            check_evaluation(cluster.setup.stages, first)
            sockets = {stage: outcome.sockets for stage, outcome in first.items()}
            trial = Trial(cluster, chance, sockets)
            prefix = "hosts: " if cluster.setup.namespaces else ""
            for number in range(min(left, ROUNDS + 1)):
                attempt = chance.choice((trial.single, trial.outside, trial.pair))
                name, took = attempt(fatal=number == ROUNDS or chance.random() < 0.1)
                seconds.setdefault(prefix + name, []).append(took)
                left -= 1
                if trial.over:
                    break


def main() -> None:
    """Print a table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    seconds: dict[str, list[float]] = {}
    try:
        chaos(count, seed, seconds)
    except AssertionError:
        print(f"fault {sum(map(len, seconds.values())) + 1} did not end as it should", flush=True)
        raise
    print(f"{'fault':36} times    median s   max s  (the timeout of a stall is {TIMEOUT} s)")
    for kind, values in sorted(seconds.items()):
        ordered = sorted(values)
        print(f"{kind:36} {len(ordered):5} {ordered[len(ordered) // 2]:11.3f} {ordered[-1]:7.3f}")
    total = sum(map(len, seconds.values()))
    print(f"{total} faults, all as they should be, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
