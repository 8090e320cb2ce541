"""Which launcher started this process, and as which one of how many: what its environment says.

Every launcher has variables of its own. Two processes that do not notice each other would each do
the whole work and report it twice; so whatever says that there are others is looked for here.
"""

import os
import sys
from typing import NamedTuple

from runtime.distributed.slurm import tasks_of_host


class LaunchError(ValueError):
    """The processes of a run were not started as they have to be."""


class Launched(NamedTuple):
    """One process of those that a launcher started."""

    launcher: str
    """Its name, for people."""
    variable: str
    """The variable that says how many there are."""
    rank: int
    processes: int
    local_rank: int | None
    """Its number among the processes of this machine; `None`: the launcher does not say."""
    local_processes: int
    """Processes on this machine; where the launcher does not say, the fewest there can be."""
    most_local_processes: int
    """Where the launcher does not say, all."""


class _Variables(NamedTuple):
    """The names under which a launcher says what it started."""

    launcher: str
    rank: str
    sizes: tuple[str, ...]
    """The number of processes; the first that is set counts."""
    local_rank: str
    local_size: str
    hints: tuple[str, ...] = ()
    """Variables that nobody else sets."""
    allocates: bool = False
    """Whether it sets some of them also where it starts a single shell, for an allocation."""


_LAUNCHERS = (
    _Variables(
        "torchrun",
        "RANK",
        ("WORLD_SIZE",),
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        hints=("LOCAL_RANK", "TORCHELASTIC_RUN_ID"),
    ),
    _Variables(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables("MPI", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # Last, since the others are started inside allocations of it.
    _Variables(
        "Slurm",
        "SLURM_PROCID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "SLURM_LOCALID",
        "SLURM_NTASKS_PER_NODE",
        allocates=True,
    ),
)


def launched_process() -> Launched | None:
    """This process's place among those of its launcher; `None` if none started it.

    A single process counts as launched only by torchrun, which made a place to meet for it.

    Raises:
        LaunchError: the environment says half of it, no numbers, or a rank out of range.
    """
    return next(filter(None, map(_launched, _LAUNCHERS)), None)


def processes_of_launcher() -> tuple[str, int] | None:
    """Which launcher started this process together with others, and how many there are.

    For who is about to do all of the work in one process: unless this is `None`, every other
    process would do the same again.

    Returns:
        The launcher and the variable that says so, such as `"torchrun (WORLD_SIZE)"`, and the
        number of processes, at least 2; `None` if nothing in the environment tells of others.

    Raises:
        LaunchError: the environment says half of it, no numbers, or a rank out of range.
    """
    found = launched_process()
    if found is None or found.processes < 2:
        return None
    return f"{found.launcher} ({found.variable})", found.processes


def _launched(names: _Variables) -> Launched | None:
    size = next((name for name in names.sizes if name in os.environ), None)
    told = any(name in os.environ for name in (names.rank, *names.hints))
    if not told and (size is None or names.allocates or _number(size, names) == 1):
        return None
    rank = _number(names.rank, names)
    if names.allocates and size is None and rank == 0:
        return None
    size = size or names.sizes[-1]
    processes = _number(size, names)
    if not rank < processes:
        raise LaunchError(
            f"{names.rank} is {rank} and {size} {processes}, needed 0 <= {names.rank} < {size}"
        )
    if processes == 1 and names is not _LAUNCHERS[0]:
        return None
    local_rank = _number(names.local_rank, names) if names.local_rank in os.environ else None
    told_local = _local_processes(names)
    return Launched(
        names.launcher,
        size,
        rank,
        processes,
        local_rank,
        max(told_local or 1, (local_rank or 0) + 1),
        told_local or processes,
    )


def cores_of_process(processes: int) -> int:
    """This process's share of the cores of its machine, at least one.

    Args:
        processes: How many share them, if no launcher has started this one.

    Raises:
        LaunchError: the environment says half of it, no numbers, or a rank out of range.
    """
    found = launched_process()
    if found is not None and os.environ.get("SLURM_CPUS_PER_TASK", "").isdecimal():
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, usable // (processes if found is None else found.most_local_processes))


def _local_processes(names: _Variables) -> int | None:
    """How many processes the launcher says that it started on this machine."""
    if names.allocates and (host := os.environ.get("SLURM_NODEID", "")).isdecimal():
        told = tasks_of_host(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""), int(host))
        if told is not None:
            return told
    return _number(names.local_size, names) if names.local_size in os.environ else None


def _number(name: str, names: _Variables) -> int:
    value = os.environ.get(name)
    if value is None:
        raise LaunchError(f"{name} is not set, needed a number ({names.launcher} sets it)")
    if not value.isdecimal():
        raise LaunchError(f"{name} is {value!r}, needed a number")
    return int(value)
