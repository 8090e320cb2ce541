"""Sequences that begin alike, as one row: what they have in common is computed once.

::

    a b c d e          row      a  b  c  d  e  f  g
    a b c f g          parent  -1  0  1  2  3  2  5
                       position 0  1  2  3  4  3  4

Each token sees itself and those before it in its own sequence, by a mask of attention, and has the
position that it has there. Sums of the attention are taken over other lengths then, so results
differ by rounding from those of the sequences on their own.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch


def tree_inputs(parents: Sequence[Sequence[int]], length: int) -> dict[str, torch.Tensor]:
    """The mask and the positions of rows.

    Args:
        parents: For each row, the place of the token before each token; -1 for the first ones.
        length: Of the rows, with padding at their ends.

    Returns:
        `attention_mask`: bool `[rows, 1, length, length]`, whether a token sees another; padding
        sees itself. `position_ids`: int64 `[rows, length]`.
    """
    mask = torch.eye(length, dtype=torch.bool).repeat(len(parents), 1, 1, 1)
    positions = torch.zeros(len(parents), length, dtype=torch.int64)
    for row, before in enumerate(parents):
        for first, stop in _runs(before):
            run, parent = slice(first, stop), before[first]
            if parent >= 0:
                mask[row, 0, run] |= mask[row, 0, parent]
            mask[row, 0, run, run] = torch.ones(stop - first, stop - first, dtype=torch.bool).tril()
            start = 0 if parent < 0 else int(positions[row, parent]) + 1
            positions[row, run] = torch.arange(start, start + stop - first)
    return {"attention_mask": mask, "position_ids": positions}


def _runs(parents: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where tokens that follow one another begin, and where they have ended."""
    starts = [place for place, parent in enumerate(parents) if place == 0 or parent != place - 1]
    return pairwise([*starts, len(parents)])
