"""Hosts in network namespaces, with a network of their own that can be made to fail.

    host 0: 10.77.0.1          host 1: 10.77.0.2
      eth0 (TAP) ----- Switch ----- eth0 (TAP)

A namespace belongs to a process that ends with this one, and has no name: nothing can be left
behind, and runs beside each other do not meet. It needs root, `ip`, `unshare` and /dev/net/tun.
"""

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path as File
from typing import Any

import pytest

from tests.support.switch import Switch

TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETCARRIER = 0x400454CA, 0x400454E2
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000

MTU = 9000
"""Large frames: the switch needs some microseconds for each."""

SECONDS = 10.0
"""How long a command of this module may take."""


@cache
def missing() -> str:
    """Why hosts cannot be made here; empty: they can."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, which only root can make"
    tools = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if tools:
        return f"hosts are network namespaces, which need {' and '.join(tools)}"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"links between hosts need {TUN}"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=SECONDS)
    return "" if made.returncode == 0 else "no network namespace can be made here"


class Hosts:
    """Some hosts in one network; a context manager, in which they exist."""

    def __init__(self, count: int) -> None:
        """Prepare `count` hosts."""
        self.addresses = [f"10.77.0.{number + 1}" for number in range(count)]
        """The IPv4 address of each."""
        self._hardware = [bytes([2, 0, 0, 0, 0, number + 1]) for number in range(count)]
        self._holders: list[subprocess.Popen[bytes]] = []
        self._taps: list[int] = []
        self._open = ExitStack()

    def __enter__(self) -> "Hosts":
        if reason := missing():
            pytest.skip(reason)
        try:
            for number in range(len(self.addresses)):
                self._add(number)
            self._switch = Switch(dict(zip(self._hardware, self._taps, strict=True)))
        except BaseException:
            self._open.close()
            raise
        self._open.callback(self._switch.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def words(self, host: int, command: Sequence[str]) -> list[str]:
        """The words of a command line that runs `command` on a host."""
        return ["nsenter", f"--net={self.namespace(host)}", "--", *command]

    def start(self, host: int, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a command on a host, in a session of its own that ends with the hosts."""
        words = self.words(host, command)
        process = subprocess.Popen(words, text=True, start_new_session=True, **options)
        self._open.callback(_end, process)
        return process

    def run(self, host: int, *command: str) -> str:
        """What a short command on a host prints."""
        words = self.words(host, command)
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=SECONDS)
        return done.stdout

    def namespace(self, host: int) -> str:
        """The file that stands for a host's network."""
        return f"/proc/{self._holders[host].pid}/ns/net"

    def processes(self, host: int) -> list[int]:
        """The processes that are on a host, or were left there."""
        here, found = os.readlink(self.namespace(host)), []
        for network in File("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):  # it ended meanwhile
                if os.readlink(network) == here:
                    found.append(int(network.parts[2]))
        return sorted(set(found) - {self._holders[host].pid})

    def plug(self, host: int, *, connected: bool) -> None:
        """Plug a host's cable in or pull it out; the host sees that, within a second."""
        self._connect(host, connected=connected)
        fcntl.ioctl(self._taps[host], _TUNSETCARRIER, struct.pack("i", connected))

    def path(self, source: int, destination: int, *, delay: float = 0.0, loss: float = 0.0) -> None:
        """Set what becomes of frames in one direction: seconds, and the share that is lost."""
        path = self._switch.paths[self._hardware[source], self._hardware[destination]]
        path.delay, path.loss = delay, loss

    def cut_off(self, host: int) -> None:
        """Lose all frames from and to a host, which nobody can notice but by the silence."""
        self._connect(host, connected=False)

    def _connect(self, host: int, *, connected: bool) -> None:
        for other in set(range(len(self.addresses))) - {host}:
            self.path(host, other, loss=1.0 - connected)
            self.path(other, host, loss=1.0 - connected)

    def _add(self, host: int) -> None:
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holders.append(holder)
        self._open.callback(_release, holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n", "no network namespace could be made"
        tap = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        self._taps.append(tap)
        self._open.callback(os.close, tap)
        flags = _IFF_TAP | _IFF_NO_PI
        made = fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"schedcc%d", flags))
        name = made[:16].rstrip(b"\0").decode()
        hardware = self._hardware[host].hex(":")
        _ip("link", "set", name, "netns", str(holder.pid))
        commands = (
            f"link set lo up\nlink set {name} name eth0 mtu {MTU} address {hardware}\n"
            f"addr add {self.addresses[host]}/24 dev eth0\nlink set eth0 up\n"
        )
        batch = self.words(host, ["ip", "-batch", "-"])
        subprocess.run(batch, input=commands, check=True, text=True, timeout=SECONDS)


def enter(namespace: str) -> None:
    """Move this process, which has one thread, to the host of a `Hosts.namespace`.

    Raises:
        OSError: it cannot be moved.
    """
    with File(namespace).open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _CLONE_NEWNET):  # `os.setns` is of Python 3.12
            raise OSError(ctypes.get_errno(), f"setns to {namespace} failed")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=SECONDS)


def _release(holder: "subprocess.Popen[bytes]") -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.close()
    holder.stdout.close()
    holder.wait(SECONDS)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait(SECONDS)
