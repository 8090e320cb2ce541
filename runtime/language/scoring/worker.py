"""A process that is one stage of a pipeline and works for the process that has started it.

It lives as long as its end of the connection does: whatever becomes of the other process, the
system closes the other end, and this process ends with it.
"""

import os
import pickle
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from runtime.device import local_device
from runtime.distributed.process_group import TIMEOUT
from runtime.language.models import ModelFiles
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.stage import ScoringStage, StageData
from runtime.transport.torch_distributed.nccl_settings import set_process_defaults

HOST = "127.0.0.1"
LOOK_SECONDS = 0.25
"""Between two looks at whether the parent is the one that started this process."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told before anything else."""

    files: ModelFiles
    options: ScorerOptions
    rank: int
    stages: int
    port: int
    """Of the store on which all processes meet, in the process that starts them."""
    threads: int


@dataclass(frozen=True)
class Failed:
    """A worker's last message: it cannot go on."""

    error: str
    trace: str


def join(store: Store, rank: int, stages: int, timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the process group of a pipeline on this machine, as the stage `rank`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    device = local_device(rank, stages)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        set_process_defaults()
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=stages, timeout=timeout, device_id=device
        )
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=stages, timeout=timeout)
    return device


def main(descriptor: int) -> None:
    """Work until the connection ends.

    Args:
        descriptor: Of this process's end of the connection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; see to it once
    connection = Connection(descriptor)
    threading.Thread(target=_end_with, args=(descriptor, os.getppid()), daemon=True).start()
    status = 0
    try:
        send(connection, None)  # everything is imported
        _work(connection, receive(connection))
    except EOFError:
        pass
    except BaseException as error:
        status = 1
        with suppress(OSError):
            send(connection, Failed(f"{type(error).__name__}: {error}", traceback.format_exc()))
    os._exit(status)


def send(connection: Connection, message: Any) -> None:
    """Send by value: multiprocessing's own way to pickle tensors would share their memory."""
    connection.send_bytes(pickle.dumps(message))


def receive(connection: Connection) -> Any:
    """What the other end has sent.

    Raises:
        EOFError: it is closed.
    """
    return pickle.loads(connection.recv_bytes())


def _work(connection: Connection, settings: WorkerSettings) -> None:
    torch.set_num_threads(settings.threads)
    store = TCPStore(HOST, settings.port, is_master=False, wait_for_workers=False)
    device = join(store, settings.rank, settings.stages)
    stage = ScoringStage(settings.files, settings.options, stages=settings.stages, device=device)
    send(connection, None)  # the layers are loaded
    while True:
        data: StageData = receive(connection)
        stage.run(data, everywhere=False)


def _end_with(descriptor: int, parent: int) -> None:
    """End this process as soon as the other end of the connection is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
    while not poll.poll(1000 * LOOK_SECONDS) and os.getppid() == parent:
        pass  # a process that was forked off the other may still hold its end
    os._exit(0)
