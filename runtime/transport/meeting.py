"""Where the ranks of a transport over `torch.distributed` meet while their transfers hang."""

from hashlib import sha256

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from runtime.failure.board import MeetingPlace


def own_store(ranks: list[int]) -> Store:
    """A connection of its own to the default store, under a name that these ranks share.

    A rank's n-th transport over the same ranks belongs to the n-th of the others.
    """
    shared = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    over = sha256(repr(ranks).encode()).hexdigest()[:16]
    number = shared.add(f"schedcc/{over}/transports/{dist.get_rank()}", 1)
    return PrefixStore(f"schedcc/{over}/{number}", shared)


def meeting_place(
    group: dist.ProcessGroup, replicas: dist.ProcessGroup | None, store: Store
) -> MeetingPlace | None:
    """Where the ranks of the pipeline meet; with replicas, all processes, which have to come.

    Args:
        group: The ranks of this pipeline.
        replicas: The ranks of this stage in all replicas.
        store: Shared by all who meet, and nobody else.
    """
    stage_id, stages = dist.get_rank(group), dist.get_world_size(group)
    if replicas is None:
        names = tuple(f"stage {stage}" for stage in range(stages))
        return MeetingPlace(store, stage_id, names) if stages > 1 else None
    rank, ranks = dist.get_rank(), range(dist.get_world_size())
    store.set(f"name/{rank}", f"stage {stage_id} of replica {dist.get_rank(replicas)}")
    return MeetingPlace(store, rank, tuple(store.get(f"name/{r}").decode() for r in ranks))
