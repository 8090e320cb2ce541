"""Which interface gloo uses, where the machine's own name says nothing about it."""

import os
import socket

import pytest

from runtime.distributed import network_interface
from runtime.distributed.launch_environment import LaunchError
from runtime.distributed.network_interface import choose_interface
from runtime.transport import addresses
from runtime.transport.addresses import INTERFACE, address_of, own_address

LOCAL, FIRST, SECOND = "127.0.1.1", "10.0.0.5", "10.1.0.5"


@pytest.fixture
def machine(monkeypatch):
    """A machine with given addresses by interface, and the ones that lead to hosts."""

    def with_network(found: dict[str, str], ways: dict[str, str]) -> None:
        def towards(host: str) -> str:
            if host not in ways:
                raise OSError("Network is unreachable")
            return ways[host]

        for module in (addresses, network_interface):
            monkeypatch.setattr(module, "address_towards", towards)
            monkeypatch.setattr(module, "interfaces", lambda: {LOCAL: "lo"} | found)
        monkeypatch.setenv("MASTER_ADDR", "node0")
        monkeypatch.setenv(INTERFACE, "")  # so that it is put back

    return with_network


DEFAULT_ROUTE = addresses._ELSEWHERE


@pytest.mark.parametrize(
    ("found", "ways", "several", "chosen"),
    [
        ({FIRST: "ib0", SECOND: "eth0"}, {"node0": FIRST}, True, "ib0"),
        ({FIRST: "eth0"}, {"node0": LOCAL}, False, "lo"),  # nobody else is to come
        ({FIRST: "eth0", SECOND: "ib0"}, {"node0": LOCAL, DEFAULT_ROUTE: FIRST}, True, "eth0"),
        ({SECOND: "ib0"}, {"node0": LOCAL}, True, "ib0"),  # no default route, and no choice
        ({}, {"node0": LOCAL}, True, "lo"),
        ({FIRST: "eth0"}, {}, True, ""),  # the meeting itself fails, and says so
    ],
)
def test_the_interface_is_the_one_on_the_way_to_rank_0(found, ways, several, chosen, machine):
    machine(found, ways)
    choose_interface(several_hosts=several)
    assert os.environ[INTERFACE] == chosen


def test_an_interface_that_the_user_has_chosen_stays(machine, monkeypatch):
    machine({FIRST: "eth0", SECOND: "ib0"}, {"node0": FIRST})
    monkeypatch.setenv(INTERFACE, "ib0")
    choose_interface(several_hosts=True)
    assert os.environ[INTERFACE] == "ib0"
    assert own_address("node0") == SECOND


def test_where_the_interface_cannot_be_known_the_choice_is_named(machine):
    machine({FIRST: "eth0", SECOND: "ib0"}, {"node0": LOCAL})
    with pytest.raises(LaunchError) as caught:
        choose_interface(several_hosts=True)
    assert str(caught.value) == (
        "MASTER_ADDR node0 is 127.0.1.1 here, which no other host reaches, and there is no default "
        "route: set GLOO_SOCKET_IFNAME to one of the interfaces eth0, ib0"
    )


def test_an_address_of_a_name_is_of_ipv4_where_there_is_one(monkeypatch):
    answers = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (FIRST, 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert address_of("node0") == FIRST
    del answers[1]
    assert address_of("node0") == "fd00::1"


def test_a_name_without_an_address_has_none(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert address_of("node0") == ""


def test_nobody_listens_for_other_hosts_where_all_are_on_one(machine):
    machine({FIRST: "eth0"}, {"localhost": LOCAL, "node0": LOCAL})
    assert own_address("localhost") == ""
    assert own_address("node0") == FIRST
    os.environ[INTERFACE] = "lo"
    assert own_address("node0") == ""


def test_the_addresses_of_this_machine_have_interfaces():
    assert addresses.interfaces()["127.0.0.1"] == "lo"
