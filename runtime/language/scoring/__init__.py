"""Scores of continuations: how probable a language model finds some tokens after others.

`LocalScorer` starts the processes that it needs; `DistributedScorer` is for processes that a
launcher has started.
"""

from runtime.language.scoring.distributed import DistributedScorer
from runtime.language.scoring.local import LocalScorer
from runtime.language.scoring.options import ScorerOptions
from runtime.language.scoring.pairs import Score, TokenPair
from runtime.language.scoring.scorer import Scorer
from runtime.language.scoring.worker import WorkerError

__all__ = [
    "DistributedScorer",
    "LocalScorer",
    "Score",
    "Scorer",
    "ScorerOptions",
    "TokenPair",
    "WorkerError",
]
