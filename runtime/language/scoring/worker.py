"""A process that is one stage of a pipeline and works for the process that has started it.

It lives as long as its end of the connection does: whatever becomes of the other process, the
system closes the other end, and this process ends with it.
"""

import os
import pickle
import select
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import Store

from runtime.device import local_device
from runtime.distributed.local_run import (
    Meeting,
    init_process_group,
    loopback_defaults,
    store_in,
)
from runtime.distributed.process_group import TIMEOUT
from runtime.failure.error_text import text_of
from runtime.language.models import ModelFiles
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.stage import ScoringStage, StageData
from runtime.transport.private_store import remove_directory

LOOK_SECONDS = 0.25
"""Between two looks at whether the parent is the one that started this process."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is told before anything else."""

    files: ModelFiles
    options: ScorerOptions
    rank: int
    stages: int
    threads: int


@dataclass(frozen=True)
class Failed:
    """A worker's last message: it cannot go on."""

    error: str
    trace: str


def join(store: Store, rank: int, stages: int, timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the process group of a pipeline on this machine, as the stage `rank`."""
    os.environ.update(loopback_defaults())
    device = local_device(rank, stages)
    init_process_group(device, timeout, Meeting(store, rank, stages), connected=False)
    return device


def main(descriptor: int, directory: Path) -> None:
    """Work until the connection ends.

    Args:
        descriptor: Of this process's end of the connection.
        directory: Where all processes meet; removed when the other end is closed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells everybody; see to it once
    connection = Connection(descriptor)
    ending = (descriptor, os.getppid(), directory)
    threading.Thread(target=_end_with, args=ending, daemon=True).start()
    status = 0
    try:
        send(connection, None)  # everything is imported
        _work(connection, receive(connection), directory)
    except EOFError:
        remove_directory(directory)
    except BaseException as error:
        status = 1
        with suppress(OSError):
            said = f"{type(error).__name__}: {text_of(error)}"
            send(connection, Failed(said, traceback.format_exc()))
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


def _work(connection: Connection, settings: WorkerSettings, directory: Path) -> None:
    torch.set_num_threads(settings.threads)
    device = join(store_in(directory, settings.stages), settings.rank, settings.stages)
    stage = ScoringStage(settings.files, settings.options, stages=settings.stages, device=device)
    send(connection, None)  # the layers are loaded
    while True:
        data: StageData = receive(connection)
        stage.run(data, everywhere=False)


def _end_with(descriptor: int, parent: int, directory: Path) -> None:
    """End this process as soon as the other end of the connection is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLHUP | getattr(select, "POLLRDHUP", 0))
    while not poll.poll(1000 * LOOK_SECONDS) and os.getppid() == parent:
        pass  # a process that was forked off the other may still hold its end
    remove_directory(directory)  # if it can do so no more
    os._exit(0)
