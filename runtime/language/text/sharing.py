"""Documents on the stages that need them, from the one that has read the texts."""

from __future__ import annotations

import torch

from runtime.language.text.documents import Documents
from runtime.language.text.windows import require_targets
from runtime.transport.protocol import Transport

CHUNK = 1 << 20
"""Tokens that travel at once."""


def share(documents: Documents | None, transport: Transport, *, wanted: bool) -> Documents | None:
    """Hand the documents of rank 0 to the ranks that want them; all have to call this.

    They travel in chunks, of which the other ranks keep none.

    Args:
        documents: On rank 0; `None` on the others.
        transport: Connection to the other ranks.
        wanted: Whether this rank wants them.

    Raises:
        TextError: none of them has a token to predict.
    """
    own = None
    if documents is not None:
        require_targets(documents)  # only this stage can name them
        own = (len(documents.tokens), len(documents.starts), *documents[2:5])
    tokens, starts, mode, separator, bos = transport.gather_objects(own)[0]
    row, places = (None, None) if documents is None else documents[:2]
    row = _share(row, tokens, transport, wanted=wanted)
    places = _share(places, starts, transport, wanted=wanted)
    if documents is None and wanted:
        documents = Documents(row, places, mode, separator, bos)
    return documents


def _share(
    row: torch.Tensor | None, length: int, transport: Transport, *, wanted: bool
) -> torch.Tensor:
    """A row of int64; an empty one on stages that do not want it."""
    source = row is not None
    kept = row if row is not None else torch.empty(length if wanted else 0, dtype=torch.int64)
    if transport.ranks == 1:
        return kept
    travels = torch.empty(min(CHUNK, length), dtype=torch.int64, device=transport.device)
    for first in range(0, length, CHUNK):
        chunk = travels[: length - first]
        if source:
            chunk.copy_(kept[first : first + CHUNK])
        transport.broadcast(chunk, 0)
        if wanted and not source:
            kept[first : first + CHUNK] = chunk
    return kept
