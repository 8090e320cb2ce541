"""Autotuning: whether plans are overlapped, or whichever variant is measured to be faster.

Overlap hides transfers behind forwards, at the price of a hand-over between threads for each
transfer. Where a forward is shorter than that, the blocking variant may win. Both give the same
results, so `"auto"` measures the caller's own runs: the first ones take turns, and those that
follow have the variant that was faster. No layer runs more often than the data asks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from runtime.device import Clock
from runtime.transport.protocol import Transport

Overlap = bool | Literal["auto"]
"""Whether plans are overlapped; `"auto"`: if that is measured to be faster."""

RUNS = 2
"""Runs of each variant that are measured; of each, the fastest counts."""

ADVANTAGE = 0.97
"""The blocking variant has to be faster by this factor to be preferred: less may be chance."""

KINDS = 64
"""Kinds of micro-batches whose measurements are remembered."""


@dataclass
class _Measured:
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    """Of a micro-batch, in runs of each variant, by whether they overlapped."""

    @property
    def missing(self) -> bool | None:
        """The variant to measure next; `None` if all is known."""
        fewest = min(self.seconds, key=lambda overlap: len(self.seconds[overlap]))
        return fewest if len(self.seconds[fewest]) < RUNS else None

    @property
    def overlap(self) -> bool:
        """The variant that is faster."""
        return min(self.seconds[False]) > ADVANTAGE * min(self.seconds[True])


class Autotuner:
    """Chooses between the variants, the same on all stages."""

    def __init__(self, overlap: Overlap, transport: Transport) -> None:
        """Decide by `overlap` for the stages of `transport`.

        Raises:
            ValueError: `overlap` is none of the choices.
        """
        if overlap not in (True, False, "auto"):
            raise ValueError(f"overlap is {overlap!r}, needed True, False or 'auto'")
        self._overlap, self._transport = overlap, transport
        self._clock = Clock(transport.device)
        self._measured: OrderedDict[str, _Measured] = OrderedDict()

    @property
    def is_measuring(self) -> bool:
        """Whether the next run is one that is measured, or may be."""
        if self._overlap != "auto" or self._transport.ranks == 1:
            return False
        measured = self._measured.values()
        return not measured or any(m.missing is not None for m in measured)

    def overlap(self, kind: str) -> bool:
        """Whether a run whose first micro-batch is of this kind is to be overlapped."""
        if self._overlap != "auto" or self._transport.ranks == 1:
            return bool(self._overlap)
        if kind not in self._measured:
            self._measured[kind] = _Measured()
            if len(self._measured) > KINDS:
                self._measured.popitem(last=False)
        measured = self._measured[kind]
        return measured.overlap if measured.missing is None else measured.missing

    @contextmanager
    def measuring(
        self, kind: str, overlap: bool, micro_batches: Callable[[], int]
    ) -> Iterator[None]:
        """Measure a run, on all stages, if it is one that has to be.

        Args:
            kind: Of the first micro-batch.
            overlap: The variant that runs.
            micro_batches: How many there were, once it is over.
        """
        measured = self._measured.get(kind)
        if measured is None or measured.missing is None:
            yield
            return
        start = perf_counter()
        yield
        self._clock.synchronize()
        # The slowest stage counts, the same on all stages, and so is the decision.
        slowest = max(self._transport.gather_objects(perf_counter() - start))
        measured.seconds[overlap].append(slowest / max(1, micro_batches()))
