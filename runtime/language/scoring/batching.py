"""Micro-batches of sequences whose lengths differ, and the positions in them that are asked about.

Sequences are sorted by length, the longest first, and cut into micro-batches that hold at most so
many tokens, padding included. Padding stands at the end of a row, where no token of a causal model
sees it; only rotary embeddings that depend on the length of a micro-batch see that it is longer, so
for these models a micro-batch holds rows of one length. Sequences that several questions share are
computed once::

    sequence [a b c]   question 1: what is the log-probability of d after a b c?
                       question 2: and that of e?
                       question 3: and that of c d after a b?  (the last two positions)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from runtime.language.scoring.pairs import TokenPair
from runtime.language.scoring.trees import tree_inputs

MOST_PADDING = 0.05
"""Of the tokens of a micro-batch; a shorter sequence begins another one."""

MAX_TOKENS = 2048
"""Of a micro-batch, padding included, where nobody chooses; fewer in a short run."""

MICRO_BATCHES = 32
"""Wanted of a short run: with fewer, stages wait long while the pipeline fills and drains."""

FEW_TOKENS = 512
"""Of a micro-batch: for more micro-batches, they are not made smaller than that."""


@dataclass(frozen=True)
class Label:
    """What the last stage is asked about one micro-batch; tensors are int64.

    The questions are in the order of their positions.
    """

    positions: torch.Tensor
    """`[positions]`: places in the flattened micro-batch, ascending."""
    questions: torch.Tensor
    """`[questions]`: for each question, an index into `positions`, ascending."""
    targets: torch.Tensor
    """`[questions]`: for each question, the token whose log-probability is wanted."""


class Asked(NamedTuple):
    """What is asked about a row for one pair."""

    pair: int
    """The number of the pair."""
    places: Sequence[int]
    """In the row: after the token at each of them, one of the targets is predicted."""
    targets: tuple[int, ...]


@dataclass
class Row:
    """One sequence, or several that begin alike, and what is asked about them."""

    tokens: tuple[int, ...]
    asked: list[Asked] = field(default_factory=list)
    parents: tuple[int, ...] = ()
    """For each token the place of the token before it, -1 if it is the first of a sequence; empty:
    of a single sequence, whose tokens follow one another."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of similar length."""

    rows: tuple[Row, ...]

    @property
    def length(self) -> int:
        """Of the longest row."""
        return len(self.rows[0].tokens)

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def pairs(self) -> int:
        """How many are asked about."""
        return sum(len(row.asked) for row in self.rows)

    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model is given: token ids, and where rows share tokens masks and positions."""
        inputs = {"input_ids": self.input_ids()}
        if any(row.parents for row in self.rows):
            parents = [row.parents or range(-1, len(row.tokens) - 1) for row in self.rows]
            inputs |= tree_inputs(parents, self.length)
        return inputs

    def input_ids(self) -> torch.Tensor:
        """Token ids, int64 `[rows, length]`, padded with 0 at the end."""
        ids = torch.zeros(len(self.rows), self.length, dtype=torch.int64)
        for number, row in enumerate(self.rows):
            ids[number, : len(row.tokens)] = torch.tensor(row.tokens)
        return ids

    def last_positions(self) -> torch.Tensor:
        """Where the next token of each row is predicted, int64 `[rows]`, in the flattened ids."""
        lengths = torch.tensor([len(row.tokens) for row in self.rows])
        return torch.arange(len(self.rows)) * self.length + lengths - 1

    def label(self) -> Label:
        """What is asked about the rows."""
        asked = sorted(self._asked())
        positions = sorted({position for position, *_ in asked})
        index = {position: number for number, position in enumerate(positions)}
        return Label(
            positions=torch.tensor(positions),
            questions=torch.tensor([index[position] for position, *_ in asked]),
            targets=torch.tensor([target for *_, target in asked]),
        )

    def answers(self) -> list[int]:
        """The number of the pair that each question of `label` belongs to."""
        return [pair for _, pair, _ in sorted(self._asked())]

    def _asked(self) -> Iterator[tuple[int, int, int]]:
        """Position, pair and target of each question."""
        for number, row in enumerate(self.rows):
            for pair, places, targets in row.asked:
                for place, target in zip(places, targets, strict=True):
                    yield number * self.length + place, pair, target


def rows_of(pairs: Iterable[TokenPair]) -> list[Row]:
    """The different sequences among the inputs of pairs, each with the pairs that it answers."""
    rows: dict[tuple[int, ...], Row] = {}
    for number, pair in enumerate(pairs):
        row = rows.setdefault(pair.inputs, Row(pair.inputs))
        places = range(len(pair.context) - 1, len(row.tokens))
        row.asked.append(Asked(number, places, pair.continuation))
    return list(rows.values())


def micro_batches(
    rows: Sequence[Row],
    *,
    max_tokens: int | None = None,
    max_rows: int | None = None,
    most_padding: float = MOST_PADDING,
) -> list[MicroBatch]:
    """Divide rows into micro-batches, the longest first.

    How they are divided depends on nothing else, so that any number of stages computes the same.

    Args:
        rows: In any order.
        max_tokens: Of a micro-batch, padding included; a longer row has one to itself. Default:
            `MAX_TOKENS`, and fewer in a short run, so that several stages work at the same time.
        max_rows: Of a micro-batch; default: as many as fit.
        most_padding: Part of a micro-batch's tokens; 0: its rows have one length.
    """
    if max_tokens is None:
        share = sum(len(row.tokens) for row in rows) // MICRO_BATCHES
        max_tokens = min(MAX_TOKENS, max(share, FEW_TOKENS))
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens, row.parents))
    batches: list[MicroBatch] = []
    gathered: list[Row] = []
    tokens = 0
    for row in ordered:
        if gathered:
            size = (len(gathered) + 1) * len(gathered[0].tokens)
            padded = size - tokens - len(row.tokens)
            full = len(gathered) == max_rows or size > max_tokens
            if full or padded > most_padding * size:
                batches.append(MicroBatch(tuple(gathered)))
                gathered, tokens = [], 0
        gathered.append(row)
        tokens += len(row.tokens)
    return [*batches, MicroBatch(tuple(gathered))] if gathered else batches
