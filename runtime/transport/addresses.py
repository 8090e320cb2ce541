"""Addresses of this machine, and the network interfaces that have them."""

import fcntl
import ipaddress
import os
import socket
import struct
import sys
from array import array
from contextlib import suppress
from pathlib import Path

INTERFACE = "GLOO_SOCKET_IFNAME"
"""The variable that names the interface for gloo."""

_ELSEWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737): the way there is the default route."""

_SIOCGIFCONF = 0x8912
_REQUEST = struct.Struct("16s4x4s16x")  # struct ifreq: a name, and an IPv4 address
_MOST_ADDRESSES = 1024


def interfaces() -> dict[str, str]:
    """The name of the interface of each address of this machine; empty where it is not told."""
    if sys.platform != "linux":
        return {}
    found = {}
    with suppress(OSError):
        found = _ipv4_interfaces()
    with suppress(OSError):  # no IPv6
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            found[str(ipaddress.IPv6Address(bytes.fromhex(digits)))] = name
    return found


def _ipv4_interfaces() -> dict[str, str]:
    places = array("B", bytes(_REQUEST.size * _MOST_ADDRESSES))
    at, size = places.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        answer = fcntl.ioctl(asks, _SIOCGIFCONF, struct.pack("iP", size, at))
    length, _ = struct.unpack("iP", answer)
    found = {}
    for name, address in _REQUEST.iter_unpack(places[:length].tobytes()):
        label = name.partition(b"\0")[0].decode()
        found[socket.inet_ntoa(address)] = label.partition(":")[0]
    return found


def address_of(host: str) -> str:
    """An address of a host, of IPv4 if it has one; empty: its name has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    _, *_, there = min(found, key=lambda each: each[0] != socket.AF_INET)
    return str(there[0])


def address_towards(host: str) -> str:
    """This machine's address on the way to a host. Nothing is sent.

    Raises:
        OSError: the name has no address, or there is no way there.
    """
    family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as towards:
        towards.connect(there)
        return str(towards.getsockname()[0])


def is_loopback(address: str) -> bool:
    """Whether nothing outside this machine can reach an address.

    >>> is_loopback("127.0.1.1"), is_loopback("::1"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def outward_addresses(host: str) -> list[str]:
    """Addresses under which other hosts may reach this machine, the likely one alone if there is.

    Many machines have their own name for a loopback address; then the way to `host`, if that is
    this machine, says nothing, and the default route is taken.

    Args:
        host: Which the other hosts reach.

    Raises:
        OSError: the name has no address, or there is no way there.
    """
    address = address_towards(host)
    if not is_loopback(address):
        return [address]
    with suppress(OSError):
        return [address_towards(_ELSEWHERE)]
    local = (ipaddress.ip_address(at) for at in interfaces())
    return [str(at) for at in local if not at.is_loopback and not at.is_link_local]


def own_address(host: str) -> str:
    """The address under which other hosts reach this machine; empty: it is not known, or none does.

    Args:
        host: Which all of them reach, the one of the store.
    """
    if chosen := os.environ.get(INTERFACE):
        found = [at for at, interface in interfaces().items() if interface == chosen]
    elif host == "localhost":
        return ""
    else:
        try:
            found = outward_addresses(host)
        except (OSError, ValueError):
            return ""
    return "" if not found or is_loopback(found[0]) else found[0]
