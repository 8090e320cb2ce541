"""The rendezvous of a transport over `torch.distributed`."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from runtime.transport.addresses import address_of
from runtime.transport.peer_process import liveness_address
from runtime.transport.private_store import OF_TORCH, PrivateStore, part_of, require_private
from runtime.transport.protocol import TransportError
from runtime.transport.rendezvous import JobStore, RendezvousStore
from runtime.transport.reserve import hold

Grid = list[list[int]]
"""Global ranks, by replica and rank of the pipeline."""


def job_store(ranks: Sequence[int]) -> JobStore:
    """The part of the store that these ranks share, over a connection of its own.

    A rank's n-th transport over the same ranks belongs to the n-th of the others.
    """
    shared = _private_store() or _default_store().clone()  # type: ignore[attr-defined]
    over = sha256(repr(list(ranks)).encode()).hexdigest()[:16]
    number = shared.add(f"schedcc/{over}/transports/{dist.get_rank()}", 1)
    return JobStore(part_of(shared, "schedcc"), tuple(ranks), f"{over}/{number}")


def group_store(job: JobStore) -> Store:
    """Where the ranks of a job make process groups: a store of torch."""
    if not isinstance(own := job.own, PrivateStore):
        return own
    shared = _default_store().clone()  # type: ignore[attr-defined]
    return PrefixStore(job.prefix, PrefixStore("schedcc", shared))


def _default_store() -> Store:
    return dist.distributed_c10d._get_default_store()


def _private_store() -> PrivateStore | None:
    """The store of a run on this machine that nobody else can reach, if it has one."""
    store = _default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, FileStore):
        return None
    file = Path(store.path)  # type: ignore[attr-defined]
    if file.name != OF_TORCH:
        return None
    require_private(file.parent)
    hold()
    return PrivateStore(str(file.parent))


def grid_of(group: dist.ProcessGroup, replicas: dist.ProcessGroup | None) -> Grid:
    """The ranks of every replica's pipeline, of which each process knows only its own.

    Args:
        group: The ranks of this pipeline.
        replicas: The processes of this rank in all replicas, which have to ask at the same time.

    Raises:
        TransportError: a replica did not ask.
    """
    pipeline = dist.get_process_group_ranks(group)
    if replicas is None:
        return [pipeline]
    ranks = dist.get_process_group_ranks(replicas)
    store = job_store(ranks).own
    store.set(f"pipeline/{dist.get_rank()}", json.dumps(pipeline))
    try:
        return [json.loads(store.get(f"pipeline/{rank}")) for rank in ranks]
    except dist.DistError as error:
        raise TransportError(
            f"not all replicas of this rank (global ranks {ranks}) made a transport: {error}"
        ) from error


def rendezvous(grid: Grid, job: JobStore) -> RendezvousStore | None:
    """The rendezvous of the ranks of all replicas; `None` if there is only one.

    Args:
        grid: All of them.
        job: Their part of the store.
    """
    if len(job.ranks) == 1:
        return None
    names = tuple(
        f"rank {rank}" + (f" of replica {replica}" if len(grid) > 1 else "")
        for replica, pipeline in enumerate(grid)
        for rank in range(len(pipeline))
    )
    store, place, host, port = job.store, "the store", "localhost", None
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        host, address = store.host, address_of(store.host)  # now, while name servers answer
        port = (address, store.port) if address else None
        place = f"the store at {store.host} port {store.port}"
    rank = job.ranks.index(dist.get_rank())
    ranks = RendezvousStore(job.own, rank, names, place, port, job)
    ranks.register(liveness_address(host))
    return ranks
