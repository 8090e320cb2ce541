"""What a row of the table is given."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.ranks import Approach, approach_in


@dataclass(frozen=True)
class Context:
    """Where a row is tried."""

    machine: Machine
    folder: Path
    """Of what is written, by other rows too."""

    @property
    def approach(self) -> Approach:
        """How several ranks share the GPU.

        Raises:
            LeftOut: they cannot.
        """
        return approach_in(self.folder, self.machine)

    def size(self, on_gpu: int, dry: int) -> int:
        """A number of micro-batches or repeats, which in a dry run is small."""
        return dry if self.machine.dry else on_gpu
