"""Small numbers for ranks, to calculate with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RankNumbers:
    """Small numbers for ranks, whatever their ids are in a plan that nobody has checked yet."""

    low: int
    count: int
    names: NDArray[np.int64] | None
    """The ids in order, where they are far apart."""

    @classmethod
    def of(cls, ids: NDArray[np.int64]) -> "RankNumbers":
        """Numbers for these ranks."""
        low, high = int(ids.min(initial=2**62)), int(ids.max(initial=-(2**62)))
        if high - low < _DENSE:
            return cls(low, max(0, high - low + 1), None)
        names = np.unique(ids)
        return cls(0, len(names), names)

    def __getitem__(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return ids - self.low if self.names is None else np.searchsorted(self.names, ids)


_DENSE = 2**15
"""Ranks that are so close together need no other numbers."""
