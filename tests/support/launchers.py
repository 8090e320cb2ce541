"""What torchrun gives to the processes that it starts: a store to meet at, and who they are."""

from collections.abc import Mapping

import torch.distributed as dist

ADDRESS = "127.0.0.1"


class Launcher:
    """Hosts the store, as torchrun does, on a port that nobody else can take meanwhile."""

    def __init__(self, processes: int) -> None:
        """Start the store of so many processes, on this host."""
        self.processes = processes
        self._store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)

    def environment(self, rank: int) -> Mapping[str, str]:
        """The variables of one process."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": ADDRESS,
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
