"""Targets: what the runtime holds itself to, and how far a run of the benchmarks is from it."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.report.results import (
    INFERENCE,
    OWN_BLOCKING,
    OWN_OVERLAPPED,
    PEERS,
    TORCH_INTERLEAVED,
    WIDE,
    Measured,
    Report,
)
from benchmarks.settings import MIB


class Target(NamedTuple):
    """A bound, and the value that was found."""

    setting: str
    what: str
    found: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the value is within the bound."""
        return self.found <= self.most


def targets(report: Report) -> Iterator[Target]:
    """All targets that the report says something about."""
    for measured in report.settings:
        yield from _of_setting(measured)
    for memory in report.memory:
        if memory.engine == OWN_OVERLAPPED:
            what = f"MiB of a rank, M = {memory.micro_batches}"
            yield Target("memory", what, max(memory.peak_bytes) / MIB, 8.0)


def _of_setting(measured: Measured) -> Iterator[Target]:
    name, kind = measured.setting.name, measured.setting.kind
    if kind == "schedules":
        yield from _of_schedules(measured)
        return
    own = measured.timing(OWN_OVERLAPPED)
    if own is None:
        return
    if kind == "links":
        yield Target(name, "overlapped / ideal pipeline", own.median / measured.ideal, 1.10)
        for form in (OWN_BLOCKING, OWN_OVERLAPPED):
            found = measured.timing(form)
            if found is not None:
                away = abs(found.median / measured.predicted[form] - 1.0)
                yield Target(name, f"{form}: away from simulation", away, 0.05)
        return
    if kind == "devices":
        yield Target(name, "overlapped / ideal pipeline", own.median / measured.ideal, 1.15)
    loop = measured.better_loop
    if loop is not None and kind == "compute":
        most = 1.20 if name == "tiny" else 1.05
        yield Target(name, f"overlapped / {loop.contender}", own.ratio(loop), most)
    for peer in filter(None, map(measured.timing, PEERS)):
        yield Target(name, f"overlapped / {peer.contender}", own.ratio(peer), 1.0)


def _of_schedules(measured: Measured) -> Iterator[Target]:
    """Two stages on each rank fill and drain in less time; every prediction holds.

    The ideal is `(v M + R - 1) t / v + (R - 1) c`, with v = 2, t of a whole rank, c of a transfer.
    """
    setting, name = measured.setting, measured.setting.name
    ranks, held = setting.stages, 2
    steps = held * setting.micro_batches + ranks - 1
    ideal = steps * measured.forward_seconds / held + (ranks - 1) * setting.transfer_seconds
    wide = measured.timing(WIDE)
    if wide is not None:
        yield Target(name, f"{WIDE} / ideal", wide.median / ideal, 1.06)
        for other in filter(None, map(measured.timing, (INFERENCE, TORCH_INTERLEAVED))):
            most = 0.9 if other.contender == INFERENCE else 1.0
            yield Target(name, f"{WIDE} / {other.contender}", wide.ratio(other), most)
    for contender, seconds in measured.predicted.items():
        if (found := measured.timing(contender)) is not None:
            away = abs(found.median / seconds - 1.0)
            yield Target(name, f"{contender}: away from simulation", away, 0.05)
