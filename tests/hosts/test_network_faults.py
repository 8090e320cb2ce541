"""Faults of a network: whoever lives says in time who is missing, and ends. Slowness is none."""

import random
from collections.abc import Callable

import pytest
from torch import nn

from runtime import Evaluator
from tests.chaos.cluster import Cluster
from tests.chaos.orders import Setup
from tests.chaos.scenarios import Trial
from tests.hosts.work import data, evaluate_for_ever, layers
from tests.support.hosts import Hosts, missing
from tests.support.ranks_on_hosts import Ended, RanksOnHosts

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(missing() != "", reason=missing())]

WHERE = (0, 0, 1, 1)
TIMEOUT = 2.0
"""Seconds; what no kernel tells is known after this time."""

BY_HOST = {host: [rank for rank, there in enumerate(WHERE) if there == host] for host in (0, 1)}


def unplugged(hosts: Hosts) -> None:
    hosts.plug(1, connected=False)


def down(hosts: Hosts) -> None:
    hosts.run(1, "ip", "link", "set", "eth0", "down")


def cut_off(hosts: Hosts) -> None:
    hosts.cut_off(1)


def one_way(hosts: Hosts) -> None:
    hosts.path(1, 0, loss=1.0)


def other_way(hosts: Hosts) -> None:
    hosts.path(0, 1, loss=1.0)


def endings(hosts: Hosts, run: RanksOnHosts, ranks: list[int]) -> list[Ended]:
    """How some ranks end, whatever they tell before; they have to, and leave nothing behind."""
    found = []
    for rank in ranks:
        while not isinstance(told := run.told([rank])[0], Ended):
            assert told is not None, f"rank {rank} was killed"
        found.append(told)
    assert run.exit_statuses(ranks) == [0] * len(ranks)
    left = {process for host in BY_HOST for process in hosts.processes(host)}
    assert left <= {process.pid for process in run.processes if process.is_alive()}
    return found


@pytest.mark.parametrize("strike", [unplugged, down, cut_off, one_way, other_way])
def test_hosts_that_cannot_reach_each_other_name_each_other(strike: Callable[[Hosts], None]):
    with Hosts(2) as hosts, RanksOnHosts(hosts, WHERE, evaluate_for_ever, TIMEOUT) as run:
        run.told()  # they are at work
        strike(hosts)
        for ended in endings(hosts, run, BY_HOST[0]):
            if strike is other_way and ended.error == "LostPeerError":  # host 1 gave up before
                assert "stage 2 and stage 3 ended without a word, or cannot be" in ended.text
            else:
                assert ended.error == "StalledError"
                assert "stage 2 and stage 3 gave no sign of life" in ended.text
            assert ended.gone == (2, 3)
        for ended in endings(hosts, run, BY_HOST[1]):
            assert ended.error in ("StalledError", "LostPeerError")
            assert f"the store at {hosts.addresses[0]} port" in ended.text
            assert {0, 1} <= set(ended.gone)


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_vanishes_is_named_also_the_one_with_the_store(host):
    with Hosts(2) as hosts, RanksOnHosts(hosts, WHERE, evaluate_for_ever, TIMEOUT) as run:
        run.told()
        hosts.cut_off(host)
        for rank in BY_HOST[host]:
            run.processes[rank].kill()
        said = "stage 2 and stage 3" if host == 1 else f"the store at {hosts.addresses[0]} port"
        for ended in endings(hosts, run, BY_HOST[1 - host]):
            assert ended.error == "StalledError"
            assert said in ended.text
            assert set(BY_HOST[host]) <= set(ended.gone)


def test_a_process_that_was_killed_is_named_on_all_hosts():
    with Hosts(2) as hosts, RanksOnHosts(hosts, WHERE, evaluate_for_ever, 60.0) as run:
        run.told()
        run.processes[2].kill()
        for ended in endings(hosts, run, [0, 1, 3]):
            assert ended.error == "LostPeerError"
            assert "stage 2" in ended.text
            assert ended.gone == (2,)


@pytest.mark.parametrize(("delay", "loss", "timeout"), [(0.2, 0.0, 5.0), (0.0, 0.3, 60.0)])
def test_a_slow_network_is_no_failure(delay, loss, timeout):
    """As with `tc qdisc add dev eth0 root netem delay 200ms`, or `loss 30%`, on one of the hosts.

    The kernel sends what was lost again; pauses of some seconds are usual then.
    """
    with Evaluator(layers(), loss_fn=nn.functional.mse_loss) as alone:
        expected = alone.evaluate(iter(data())).loss
    with Hosts(2) as hosts, RanksOnHosts(hosts, WHERE, evaluate_for_ever, timeout) as run:
        assert run.told() == [expected] * len(WHERE)
        hosts.path(1, 0, delay=delay, loss=loss)
        assert run.told() == [expected] * len(WHERE)


def test_ranks_that_could_not_reach_each_other_evaluate_again_when_they_can():
    with Hosts(2) as hosts:
        namespaces = (hosts.namespace(0), hosts.namespace(1))
        setup = Setup(2, timeout=TIMEOUT, namespaces=namespaces, address=hosts.addresses[0])
        with Cluster(setup) as cluster:
            trial = Trial(cluster, random.Random(1), hosts=hosts)
            trial.begin()
            trial.network_fault("slow network")
            trial.network_fault("host cut off")
            assert not trial.over
