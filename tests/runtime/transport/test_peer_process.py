"""Whether a process has ended: on this host, elsewhere, and where nothing can be known."""

import os
import resource
import socket
import time
from contextlib import ExitStack

import pytest

from runtime.transport.peer_process import (
    PROBE_SECONDS,
    PeerProcesses,
    connectable,
    liveness_address,
    remote_place,
)

LOOKS = 5.0
"""Seconds in which an answer comes, on a machine that does much else."""


@pytest.fixture
def processes():
    probes = PeerProcesses()
    yield probes
    probes.close()


@pytest.fixture
def elsewhere():
    """Like the process of another host: its address, and the socket that it listens on."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1)
    yield f"another host/nobody/127.0.0.1 {listening.getsockname()[1]}", listening
    listening.close()


def until_reached(processes: PeerProcesses, address: str) -> None:
    until = time.monotonic() + LOOKS
    while not processes.reached(address):
        assert not processes.has_ended(address)
        assert time.monotonic() < until
        time.sleep(0.01)


def test_this_process_lives_and_needs_not_be_reached_first(processes):
    address = liveness_address()
    if not address:
        pytest.skip("processes cannot be probed here")
    assert processes.reached(address)
    assert not processes.has_ended(address)
    key, _, remote = address.rsplit("/", 2)
    assert remote == "", "all processes of this store are on this host: nobody listens to others"
    assert processes.has_ended(f"{key}/nobody/")


def test_a_process_elsewhere_has_ended_when_a_connection_is_refused_that_was_none_before(
    processes, elsewhere
):
    address, listening = elsewhere
    until_reached(processes, address)
    listening.close()
    until = time.monotonic() + PROBE_SECONDS + LOOKS
    while not processes.has_ended(address):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_process_elsewhere_that_could_never_be_reached_is_not_known_to_have_ended(
    processes, elsewhere
):
    address, listening = elsewhere
    listening.close()  # from here on it looks as behind a firewall that refuses
    until = time.monotonic() + 2 * PROBE_SECONDS
    while time.monotonic() < until:
        assert not processes.has_ended(address)
        assert not processes.reached(address)
        time.sleep(0.05)


def test_a_queue_that_is_full_is_no_end(processes, elsewhere):
    address, listening = elsewhere
    until_reached(processes, address)
    waiting = [socket.socket() for _ in range(8)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(listening.getsockname())
    until = time.monotonic() + 3 * PROBE_SECONDS
    while time.monotonic() < until:
        assert not processes.has_ended(address)
        time.sleep(0.05)
    for each in waiting:
        each.close()


def test_of_a_process_without_an_address_nothing_is_known(processes):
    assert processes.reached("")
    assert not processes.has_ended("")
    assert not processes.has_ended("another host/nobody/")


def test_a_connection_to_a_host_can_be_made_or_not(elsewhere):
    address, listening = elsewhere
    place = remote_place(address)
    assert place is not None
    assert connectable([place])
    listening.close()
    assert not connectable([place])
    assert not connectable([])
    assert remote_place("a host/a name/") is None


def test_the_name_of_no_host_is_not_reached_and_hides_no_other(elsewhere):
    place = remote_place(elsewhere[0])
    assert place is not None
    nowhere = ("no.such.host.invalid", 1)
    assert not connectable([nowhere], LOOKS)
    assert connectable([nowhere, place], LOOKS)


def test_a_process_with_more_descriptors_than_select_takes_can_probe_others(processes, elsewhere):
    address, _ = elsewhere
    place = remote_place(address)
    assert place is not None
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2048:
        pytest.skip("the system gives less than 2048 descriptors")
    with ExitStack() as held:
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) < 1024:
            held.callback(os.close, descriptor)
        held.callback(os.close, descriptor)
        assert connectable([place], LOOKS)
        until_reached(processes, address)


def test_without_a_descriptor_nobody_is_reached_and_nobody_has_ended(
    processes, elsewhere, monkeypatch
):
    address, _ = elsewhere
    place = remote_place(address)
    assert place is not None

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    assert not connectable([place], LOOKS)
    assert not processes.has_ended(address)
    monkeypatch.undo()
    until_reached(processes, address)
