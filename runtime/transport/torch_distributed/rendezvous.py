"""The rendezvous of a transport over `torch.distributed`."""

import json
from collections.abc import Sequence
from hashlib import sha256

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from runtime.transport.peer_process import liveness_address
from runtime.transport.protocol import TransportError
from runtime.transport.rendezvous import JobStore, RendezvousStore

Grid = list[list[int]]
"""Ranks among all processes, by replica and stage."""


def job_store(ranks: Sequence[int]) -> JobStore:
    """The part of the store that these ranks share, over a connection of its own.

    A rank's n-th transport over the same ranks belongs to the n-th of the others.
    """
    shared = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    over = sha256(repr(list(ranks)).encode()).hexdigest()[:16]
    number = shared.add(f"schedcc/{over}/transports/{dist.get_rank()}", 1)
    return JobStore(PrefixStore("schedcc", shared), tuple(ranks), f"{over}/{number}")


def grid_of(group: dist.ProcessGroup, replicas: dist.ProcessGroup | None) -> Grid:
    """The ranks of every replica's pipeline, of which each process knows only its own.

    Args:
        group: The ranks of this pipeline.
        replicas: The ranks of this stage in all replicas, which have to ask at the same time.

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
            f"not all replicas of this stage (ranks {ranks}) made a transport: {error}"
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
        f"stage {stage}" + (f" of replica {replica}" if len(grid) > 1 else "")
        for replica, pipeline in enumerate(grid)
        for stage in range(len(pipeline))
    )
    store, place, host = job.store, "the store", "localhost"
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        host, place = store.host, f"the store at {store.host} port {store.port}"
    ranks = RendezvousStore(job.own, job.ranks.index(dist.get_rank()), names, place, job)
    ranks.register(liveness_address(host))
    return ranks
