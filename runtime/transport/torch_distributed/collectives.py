"""What all ranks do together: through local channels if all are on one host, else in groups."""

from typing import Any

import torch

from runtime.transport.protocol import as_bytes
from runtime.transport.shared_memory.channels import LocalChannels
from runtime.transport.shared_memory.coordinator import LocalCollectives
from runtime.transport.torch_distributed.exchanges import Exchanges
from runtime.transport.torch_distributed.groups.backends import UNGUARDED_TIMEOUT
from runtime.transport.torch_distributed.groups.process_groups import RenewableGroup
from runtime.transport.torch_distributed.object_gather import gather_objects


class Collectives:
    """The collective operations of one rank; all ranks call them in the same order."""

    def __init__(
        self,
        pipeline: RenewableGroup,
        replicas: RenewableGroup | None,
        local: LocalChannels,
        exchanges: Exchanges,
    ) -> None:
        """Over the ranks of `pipeline`, and this rank in all `replicas`."""
        self._pipeline, self._replicas = pipeline, replicas
        self._local, self._exchanges = local, exchanges
        self.timeout = UNGUARDED_TIMEOUT
        """How long a wait may take."""

    def open_local(self) -> None:
        """Have the local ones from here on, if all ranks are on this host."""
        if self._local.collectives is None:
            rank, size = self._pipeline.rank, self._pipeline.size
            self._local.open_collectives(rank, size, self.timeout, self._exchanges.of)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Hand `tensor` of rank `source` to all ranks.

        Raises:
            RuntimeError: a rank is gone.
        """
        if self._pipeline.size == 1:
            return
        if (local := self._next()) is not None:
            local.broadcast(as_bytes(tensor), source)
            return
        group = self._pipeline.group
        with self._pipeline.call():
            work = group.broadcast(tensor, source)
        self._pipeline.finish([work])  # it is about to be read

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`.

        Raises:
            RuntimeError: a rank is gone.
        """
        if self._pipeline.size == 1:
            return [value]
        through = self._next() or self._pipeline
        return gather_objects(value, through.all_gather)

    def gather_from_replicas(self, value: Any) -> list[Any]:
        """The `value` of this rank in every replica.

        Raises:
            RuntimeError: a replica is gone.
        """
        if self._replicas is None:
            return [value]
        self._local.leave()
        return gather_objects(value, self._replicas.all_gather)

    def _next(self) -> LocalCollectives | None:
        """Local operations, if all ranks have them; else those of the group are next."""
        if self._pipeline.is_unconnected:
            self.open_local()
        if self._local.collectives is None:
            self._local.leave()
        return self._local.collectives
