"""An evaluation that is under way."""

from dataclasses import dataclass

import schedcc
from runtime.data.micro_batches import Prefetcher
from runtime.data.samples import SampleWeights
from runtime.outputs.options import EvalOptions
from runtime.outputs.results import Results


@dataclass
class Evaluation:
    """What one rank knows of an evaluation that is under way."""

    options: EvalOptions
    outcome: schedcc.Outcome
    """What its last run delivers."""
    asked: int | None
    """The number of micro-batches that the caller asked for; `None`: all that there are."""
    prefetcher: Prefetcher | None
    results: Results
    weights: SampleWeights
    micro_batches: int = 0
    """Those that have been evaluated."""

    def close(self) -> None:
        """Fetch nothing more."""
        if self.prefetcher is not None:
            self.prefetcher.close()
