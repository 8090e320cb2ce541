"""What the processes of a cluster are told, and what they answer."""

from dataclasses import dataclass
from typing import Literal

from runtime.failure.report import Failure
from runtime.transport import Channels
from tests.chaos.faults import Fault

Operation = Literal["evaluate", "save", "load"]


@dataclass(frozen=True)
class Setup:
    """How the processes of a cluster are connected."""

    stages: int
    overlap: bool = False
    timeout: float = 60.0
    store_on_rank_0: bool = False
    """As with a plain `init_process_group`; else on the parent, as torchrun does it."""
    channels: Channels = "memory"
    replicas: int = 1
    namespaces: tuple[str, ...] = ()
    """The host of each rank (`tests.support.hosts`); the first one also hosts the store."""
    address: str = "127.0.0.1"
    """Of the store."""
    private: bool = False
    """Whether they meet in a directory, as those of a run that opens no port."""

    @property
    def processes(self) -> int:
        """Stages of all replicas; those of replica 0 come first."""
        return self.stages * self.replicas


@dataclass(frozen=True)
class Outcome:
    """What one process saw of an evaluation."""

    loss: float | None
    error: str | None
    """Class of the exception."""
    text: str
    notes: tuple[str, ...]
    failure: Failure | None
    """What a `RemoteError` carries."""
    ended: float
    """Seconds, on the clock that all processes share."""
    sockets: int
    segments: int
    """Of shared memory, its own and those of others."""
    threads: tuple[str, ...]
    """Their names."""


@dataclass(frozen=True)
class Order:
    """What the processes are to do next."""

    faults: tuple[Fault, ...]
    operation: Operation
    directory: str
    """Of the checkpoint that is saved or loaded."""
