"""A process of a cluster: it joins the others, and evaluates when it is told to."""

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runtime import Evaluator, RemoteError
from runtime.distributed.local_run import Meeting, init_process_group, store_in
from runtime.failure.error_text import text_of
from runtime.failure.store import FailureStore
from tests.chaos.faults import MICRO_BATCHES, Fault, Saboteur, Trap, layers
from tests.chaos.orders import Order, Outcome, Setup
from tests.support.hosts import enter

DESCRIPTORS = 256
"""That a process may have open; faults use them up."""


def serve(namespace: str, address: str, end: Connection) -> None:
    """Host the store, as torchrun does it, and tell its port."""
    enter(namespace)
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    end.send(store.port)
    time.sleep(3600)


def _meet(rank: int, setup: Setup, where: int | Path, end: Connection) -> None:
    """Join the others through the store at a port, or in a directory; a host tells the port."""
    if isinstance(where, Path):
        meeting = Meeting(store_in(where, setup.processes), rank, setup.processes)
        init_process_group(torch.device("cpu"), timedelta(minutes=5), meeting, connected=False)
        return
    host = setup.store_on_rank_0 and rank == 0
    store = dist.TCPStore(setup.address, where, is_master=host, wait_for_workers=False)
    if host:
        end.send(store.port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=setup.processes)


def work(rank: int, setup: Setup, where: int | Path, end: Connection, *shared: Any) -> None:
    """Be a rank, until the other end is closed.

    Args:
        rank: Of this process.
        setup: Of all.
        where: The port of the store, or the directory where they meet.
        end: Orders come here; a host of the store tells its port first.
        shared: What the trap shares with the process that started this one.
    """
    if setup.namespaces:
        enter(setup.namespaces[rank])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs beside a shell
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if setup.namespaces else "lo"
    _meet(rank, setup, where, end)
    trap, model = Trap(rank, *shared), layers(setup.stages)
    saboteur = model[2 * (rank % setup.stages) + 1]
    assert isinstance(saboteur, Saboteur)
    saboteur.trap = trap
    evaluator = Evaluator(
        model,
        loss_fn=trap.in_loss,
        partition=[2 * stage for stage in range(setup.stages + 1)],
        overlap=setup.overlap,
        timeout=setup.timeout,
        channels=setup.channels,
        replicas=setup.replicas,
        check_finite=True,
        listeners=(trap,),
    )
    _set_traps(evaluator, trap)
    while True:
        try:
            order: Order = end.recv()
        except EOFError:
            return
        trap.faults = order.faults
        end.send(_attempt(evaluator, trap, order))


def _set_traps(evaluator: Evaluator, trap: Trap) -> None:
    """Have the trap strike where neither layers nor listeners come."""
    transport: Any = evaluator._transport
    places = (transport, "open"), (transport, "connect"), (transport._local, "open")
    for number, (owner, name) in enumerate(places):
        setattr(owner, name, _before(getattr(owner, name), partial(trap.strike, "opening", number)))
    acknowledge = FailureStore.acknowledge
    FailureStore.acknowledge = _before(acknowledge, partial(trap.strike, "telling"))  # type: ignore[method-assign]


def _before(function: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    def both(*arguments: Any, **options: Any) -> Any:
        act()
        return function(*arguments, **options)

    return both


def _attempt(evaluator: Evaluator, trap: Trap, order: Order) -> Outcome:
    loss: float | None = None
    error: BaseException | None = None
    try:
        match order.operation:
            case "evaluate":
                loss = evaluator.eval_batch(trap.data(), num_micro_batches=MICRO_BATCHES).loss
            case "save":
                evaluator.save_state_dict(order.directory)
            case "load":
                evaluator.load_state_dir(order.directory)
    except BaseException as raised:
        error = raised
    ended = time.monotonic()
    name, text = ("", "") if error is None else (type(error).__name__, text_of(error))
    notes = tuple(getattr(error, "__notes__", ()))
    failure = error.failure if isinstance(error, RemoteError) else None
    del error  # with all that its frames hold
    if order.faults == (Fault("none", 0),):
        gc.collect()  # what only cycles hold is not left behind
    return Outcome(
        loss=loss,
        error=name or None,
        text=text,
        notes=notes,
        failure=failure,
        ended=ended,
        sockets=_open("socket:"),
        segments=_open("/memfd:"),
        threads=tuple(sorted(thread.name for thread in threading.enumerate())),
    )


def _open(kind: str) -> int:
    """How many descriptors of a kind this process holds."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing's own descriptor
            continue
    return sum(link.startswith(kind) for link in links)
