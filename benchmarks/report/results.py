"""Results of the benchmarks: what the file holds, and what follows from it."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from pydantic import Field

from benchmarks.settings import Setting
from schemas.base import Frozen

ONE_PROCESS = "one process"
OWN_BLOCKING = "schedcc, blocking"
OWN_OVERLAPPED = "schedcc, overlapped"
OWN_AUTO = "schedcc, auto"
OWN_GLOO = "schedcc, over gloo"
INFERENCE = "inference, overlapped"
WIDE = "interleaved_wide, overlapped by channel"
TORCH_INTERLEAVED = "torch Interleaved1F1B.eval"
LOOPS = ("loop, blocking", "loop, prefetching")
PEERS = ("torch GPipe.eval", "torch schedule runtime")


class Timing(Frozen):
    """The repeats of one contender."""

    contender: str
    seconds: tuple[float, ...] = Field(min_length=1)
    """In the order in which they were run, each beside those of the other contenders."""

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    def ratio(self, other: "Timing") -> float:
        """Median of the ratios to another contender, repeat by repeat.

        Neighbours in time share what else the machine does, so this says more than medians do.
        """
        if len(self.seconds) != len(other.seconds):
            return self.median / other.median
        return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


class Measured(Frozen):
    """A setting, with all its contenders in one run."""

    setting: Setting
    layers_per_stage: int
    timings: tuple[Timing, ...]
    predicted: dict[str, float] = Field(default_factory=dict)
    """Seconds by the compiler's simulation, where links are emulated."""

    def timing(self, contender: str) -> Timing | None:
        """The repeats of a contender, if it took part."""
        return next((t for t in self.timings if t.contender == contender), None)

    @property
    def better_loop(self) -> Timing | None:
        """The faster one of the hand-written loops."""
        loops = [t for t in self.timings if t.contender in LOOPS]
        return min(loops, key=lambda timing: timing.median, default=None)

    @property
    def ideal(self) -> float:
        """Seconds of the ideal pipeline: (M + S - 1) t + (S - 1) c.

        The forward t of a stage is that of one process, measured in the same run; the transfer c
        is that of emulated links, and elsewhere nothing.
        """
        stages = self.setting.stages
        steps = self.setting.micro_batches + stages - 1
        return steps * self.forward_seconds + (stages - 1) * self.setting.transfer_seconds

    @property
    def forward_seconds(self) -> float:
        """The forward of a stage, as one process takes it."""
        one_process = self.timing(ONE_PROCESS)
        assert one_process is not None
        return one_process.median / (self.setting.micro_batches * self.setting.stages)


class MemoryOf(Frozen):
    """What the activations of one evaluation cost."""

    engine: str
    micro_batches: int
    peak_bytes: tuple[int, ...]
    """By rank."""


class Report(Frozen):
    """The file that a run of the benchmarks writes."""

    format: str = "schedcc.benchmarks/1"
    taken: datetime
    machine: str
    cores: int
    load: float
    """Processes that wanted to run, averaged over the last minute, when the run ended."""
    torch: str
    settings: tuple[Measured, ...]
    memory: tuple[MemoryOf, ...]

    @classmethod
    def here(cls, settings: tuple[Measured, ...], memory: tuple[MemoryOf, ...]) -> "Report":
        """What was measured on this machine just now."""
        import torch

        return cls(
            taken=datetime.now(UTC),
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            cores=os.cpu_count() or 1,
            load=os.getloadavg()[0],
            torch=torch.__version__,
            settings=settings,
            memory=memory,
        )

    def write(self, file: Path) -> None:
        """Write the report as JSON."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
