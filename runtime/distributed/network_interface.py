"""The network interface through which the processes of a run reach each other.

Gloo takes the address that this machine's own name has. On many machines that is a loopback
address, which no other host can connect to. What counts is the way to where rank 0 is.
"""

import os

from runtime.distributed.launch_environment import LaunchError
from runtime.transport.addresses import INTERFACE, address_towards, interfaces, outward_addresses


def choose_interface(*, several_hosts: bool) -> None:
    """Have gloo use the interface towards `MASTER_ADDR`, unless the user has chosen one.

    Args:
        several_hosts: Whether processes of other hosts may have to reach this one.

    Raises:
        LaunchError: they may, and which interface they use cannot be known.
    """
    if os.environ.get(INTERFACE):
        return
    where, found = os.environ["MASTER_ADDR"], interfaces()
    try:
        here = address_towards(where)
        candidates = outward_addresses(where) if several_hosts else [here]
    except OSError:
        return  # rank 0 cannot be found: to meet there fails, and says so
    names = sorted({found[address] for address in candidates if address in found})
    if len(names) > 1:
        raise LaunchError(
            f"MASTER_ADDR {where} is {here} here, which no other host reaches, and there is no "
            f"default route: set {INTERFACE} to one of the interfaces {', '.join(names)}"
        )
    if names or here in found:
        os.environ[INTERFACE] = names[0] if names else found[here]
