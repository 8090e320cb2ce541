"""Rows that begin alike, put together, so that their beginnings are computed once.

A row with which another one begins needs no row: the other one has its positions. Rows that go on
in different ways are put together as a tree, whose tokens need a mask of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.language.scoring.batching import Asked, Row
from runtime.language.scoring.pairs import TokenPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PROBE = (TokenPair([0, 1, 2, 3], [4, 5]), TokenPair([0, 1, 2, 3], [6, 7, 8]))
"""Pairs that are scored both ways before contexts are shared: a model may not heed its mask."""

TOLERANCE = 1e-2
"""Nats by which the scores of the probe may differ: more than rounding, less than other inputs."""

MOST_ADDED = 0.25
"""What a tree may have beside its longest sequence, as a part of it, where that is more than
`max_tokens`."""


def common_prefix_length(before: Sequence[int], after: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = zip(before, after, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))


def merge_prefixes(rows: Sequence[Row]) -> list[Row]:
    """Ask about rows with which others begin where these are computed.

    What comes after a token changes nothing for a causal model, unless its rotary embeddings depend
    on the length.

    Args:
        rows: Single sequences; they stay as they are.
    """
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):
        if kept and kept[-1].tokens[: len(row.tokens)] == row.tokens:
            kept[-1] = replace(kept[-1], asked=[*kept[-1].asked, *row.asked])
        else:
            kept.append(row)
    return kept


def has_length_dependent_rope(config: PreTrainedConfig) -> bool:
    """Whether rotary embeddings of a token are others in a longer sequence.

    That is so for the types `dynamic` and `longrope` (`dynamic_rope_update` of transformers).
    """
    rotary = str(getattr(config.get_text_config(decoder=True), "rope_parameters", None))
    return "dynamic" in rotary or "longrope" in rotary


def shared(rows: Sequence[Row], *, max_tokens: int, limit: int | None = None) -> list[Row]:
    """Put rows together that have at least half of their tokens in common.

    Args:
        rows: Single sequences.
        max_tokens: Of a row that several are put into, or else `MOST_ADDED` more than the longest
            of these has.
        limit: Of any row's tokens; default: none.
    """
    found: list[_Tree] = []
    for row in sorted(rows, key=lambda row: row.tokens):
        if not (found and found[-1].add(row, max_tokens, limit)):
            found.append(_Tree(row))
    return [tree.row for tree in found]


class _Tree:
    """Rows that are put together, in the order of their tokens."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self._last = row.tokens
        self._longest = len(row.tokens)
        self._path: list[int] = list(range(len(row.tokens)))
        """The place of each token of the row that was added last."""

    def add(self, row: Row, max_tokens: int, limit: int | None) -> bool:
        """Add a row, if it fits."""
        common = common_prefix_length(self._last, row.tokens)
        new = len(row.tokens) - common
        start = len(self.row.tokens)
        longest = max(self._longest, len(row.tokens))
        room = max(max_tokens, int(longest * (1 + MOST_ADDED)))
        if 2 * common < len(row.tokens) or start + new > min(room, limit or room):
            return False
        path = [*self._path[:common], *range(start, start + new)]
        parents = self.row.parents or tuple(range(-1, start - 1))
        asked = [
            Asked(pair, [path[place] for place in places], targets)
            for pair, places, targets in row.asked
        ]
        self.row = Row(
            tokens=self.row.tokens + row.tokens[common:],
            asked=[*self.row.asked, *asked],
            parents=(*parents, *(path[place - 1] for place in range(common, len(path)))),
        )
        self._last, self._longest, self._path = row.tokens, longest, path
        return True


def require_full_attention(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model whose layers see something else than everything before a token.

    A mask of one's own takes the place of sliding windows, so these would be left out.

    Raises:
        ValueError: naming the setting.
    """
    if has_length_dependent_rope(config):
        raise ValueError(
            f"share_contexts with {name}, whose rotary embeddings depend on the length of a "
            "sequence, needed some that do not"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    for setting in ("sliding_window", "attention_chunk_size"):
        if getattr(config, setting, None) is not None and kinds != {"full_attention"}:
            raise ValueError(
                f"share_contexts with {name}, whose configuration sets {setting} to "
                f"{getattr(config, setting)}, needed a model whose layers see all tokens"
            )
    if kinds - {"full_attention"}:
        raise ValueError(
            f"share_contexts with {name}, whose layers are of the types {sorted(kinds)}, needed "
            "full_attention alone"
        )
