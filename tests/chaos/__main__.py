"""`python -m tests.chaos N`: N random faults in real processes, and how long each took to be told.

What can be recovered from happens again and again in the same processes; what cannot needs new
ones. Where network namespaces can be made, some of the processes are on two hosts.
"""

import itertools
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, get_args

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from runtime.transport import Channels
from tests.chaos.cluster import Cluster
from tests.chaos.orders import Setup
from tests.chaos.scenarios import Trial
from tests.support.hosts import Hosts, missing

ROUNDS = 8
"""Recoverable faults in the same processes, before one that is not."""

TIMEOUT = 3.0
"""Seconds; less is no failure yet on a machine that is busy."""
PRIVATE_SHARE = 0.3
HOSTS_SHARE = 0.3


@contextmanager
def cluster_of(chance: random.Random) -> Iterator[tuple[Cluster, Hosts | None]]:
    """Two to four processes that are connected in any way, and the hosts on which they are."""
    stages, overlap = chance.choice([2, 3, 4]), chance.random() < 0.5
    channels = chance.choice(get_args(Channels))
    if chance.random() < PRIVATE_SHARE:
        with Cluster(Setup(stages, overlap, TIMEOUT, private=True)) as cluster:
            yield cluster, None
        return
    if missing() or chance.random() > HOSTS_SHARE:
        with Cluster(Setup(stages, overlap, TIMEOUT, channels=channels)) as cluster:
            yield cluster, None
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
            yield cluster, hosts


class Found(NamedTuple):
    """What has been tried."""

    seconds: dict[str, list[float]]
    """From each fault to the last stage's error, by kind."""
    wrong: list[str]
    """Faults that did not end as they should, with what there was instead."""

    @property
    def tried(self) -> int:
        return sum(map(len, self.seconds.values())) + len(self.wrong)


def chaos(count: int, seed: int, first: int, found: Found) -> None:
    """Let `count` faults happen, in parts that have processes and chances of their own.

    Args:
        count: Of faults.
        seed: Of the chances of all parts.
        first: The number of the first part.
        found: What is added to.
    """
    for part in itertools.count(first):
        chance, at_once = random.Random(f"{seed} {part}"), min(count - found.tried, ROUNDS + 1)
        if not at_once:
            return
        with cluster_of(chance) as (cluster, hosts):
            trial = Trial(cluster, chance, hosts=hosts)
            try:
                strike(trial, chance, at_once, found.seconds)
            except Exception as error:  # what an assertion says, or a process that has ended
                traceback.print_exc()
                found.wrong.append(f"{trial.faults}: {error}".partition("\n")[0])
                again = f"python -m tests.chaos {at_once} {seed} {part}"
                print(f"{trial.faults} did not end as it should: {again}", flush=True)


def strike(
    trial: Trial, chance: random.Random, count: int, seconds: dict[str, list[float]]
) -> None:
    """Let at most `count` faults happen in the same processes, until one that ends them.

    Raises:
        AssertionError: one did not end as it should.
    """
    trial.begin()
    for number in range(count):
        attempt = chance.choice(trial.attempts)
        name, took = attempt(fatal=number == ROUNDS or chance.random() < 0.1)
        seconds.setdefault(name, []).append(took)
        if trial.over:
            break


def main() -> None:
    """Print a table; exit status 1 if a fault did not end as it should."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**6)
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    found = Found({}, [])
    try:
        chaos(count, seed, first, found)
    finally:  # Ctrl-C, too
        show(found, time.monotonic() - began)
    sys.exit(1 if found.wrong else 0)


def show(found: Found, took: float) -> None:
    """Print the times by kind, and what did not end as it should."""
    print(f"{'fault':36} times    median s   max s  (the timeout of a stall is {TIMEOUT} s)")
    for kind, values in sorted(found.seconds.items()):
        ordered = sorted(values)
        print(f"{kind:36} {len(ordered):5} {ordered[len(ordered) // 2]:11.3f} {ordered[-1]:7.3f}")
    for wrong in found.wrong:
        print(f"wrong: {wrong}")
    print(f"{found.tried} faults, {len(found.wrong)} not as they should be, in {took:.0f} s")


if __name__ == "__main__":
    main()
