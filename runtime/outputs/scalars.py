"""A table of scalars, written row by row without waiting for the device that they are on."""

from array import array
from collections.abc import Sequence
from typing import Protocol

import torch

from runtime.outputs.values import Scalar

ROWS = 256
"""Rows for which memory on a device is made at once."""


class ScalarTable(Protocol):
    """Rows of float64 scalars, all of one length."""

    def append(self, row: Sequence[Scalar]) -> None:
        """Add a row; tensors have one element and are copied."""

    def rows(self, width: int) -> torch.Tensor:
        """All rows, float64 `[rows, width]`."""


def scalar_table(device: torch.device) -> ScalarTable:
    """An empty table for scalars on `device`."""
    return HostTable() if device.type == "cpu" else DeviceTable(device)


class HostTable:
    """Rows in the host's memory, where scalars are, too."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._values = array("d")

    def append(self, row: Sequence[Scalar]) -> None:
        """Add a row; see `ScalarTable`."""
        self._values.extend(map(float, row))

    def rows(self, width: int) -> torch.Tensor:
        """All rows; see `ScalarTable`."""
        return torch.tensor(self._values, dtype=torch.float64).reshape(-1, width)


class DeviceTable:
    """Rows on a device.

    Scalars are copied into memory that is there beforehand. A small tensor for each of them would
    sit where the activation of its micro-batch was before, and keep the allocator from using that
    place for the next one: memory would grow with the number of micro-batches after all.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin without rows."""
        self._device = device
        self._blocks: list[torch.Tensor] = []
        self._cells: list[torch.Tensor] = []
        """Those of the last block, row by row."""
        self._free = 0
        """The first of them that is not written."""

    def append(self, row: Sequence[Scalar]) -> None:
        """Add a row; see `ScalarTable`."""
        if self._free == len(self._cells):
            self._blocks.append(
                torch.empty(ROWS, len(row), dtype=torch.float64, device=self._device)
            )
            self._cells, self._free = list(self._blocks[-1].flatten().unbind()), 0
        for scalar in row:
            cell = self._cells[self._free]
            self._free += 1
            if isinstance(scalar, torch.Tensor):
                cell.copy_(scalar.detach().reshape(()))
            else:
                cell.fill_(scalar)

    def rows(self, width: int) -> torch.Tensor:
        """All rows; see `ScalarTable`."""
        empty = torch.empty((0, width), dtype=torch.float64, device=self._device)
        used = self._free // width
        return torch.cat([empty, *self._blocks[:-1], *(b[:used] for b in self._blocks[-1:])])
