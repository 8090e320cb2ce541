"""Tables of a report, for the terminal."""

from collections.abc import Iterator

from rich.table import Table

from benchmarks.report.results import Measured, MemoryOf, Report
from benchmarks.report.targets import targets
from benchmarks.settings import MIB


def tables(report: Report, *, judged: bool = True) -> Iterator[Table]:
    """One table for each setting, one for memory, and one for the targets where it is judged."""
    yield from map(_setting_table, report.settings)
    if report.memory:
        yield _memory_table(report.memory)
    if judged:
        yield _target_table(report)


def _setting_table(measured: Measured) -> Table:
    table = Table(title=measured.setting.title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("median ms", "fastest", "/ loop", "/ ideal", "predicted"):
        table.add_column(column, justify="right")
    loop = measured.better_loop
    for timing in measured.timings:
        predicted = measured.predicted.get(timing.contender)
        table.add_row(
            timing.contender,
            f"{timing.median * 1e3:.1f}",
            f"{min(timing.seconds) * 1e3:.1f}",
            f"{timing.ratio(loop):.3f}" if loop else "",
            f"{timing.median / measured.ideal:.3f}",
            f"{predicted * 1e3:.1f}" if predicted else "",
        )
    table.add_row("ideal pipeline", f"{measured.ideal * 1e3:.1f}", "", "", "1", "")
    return table


def _memory_table(memory: tuple[MemoryOf, ...]) -> Table:
    table = Table(title="memory: S = 2, activations of 1 MiB", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("M", "MiB of rank 0", "MiB of rank 1"):
        table.add_column(column, justify="right")
    for one in memory:
        peaks = (f"{peak / MIB:.1f}" for peak in one.peak_bytes)
        table.add_row(one.engine, str(one.micro_batches), *peaks)
    return table


def _target_table(report: Report) -> Table:
    table = Table(title="targets", title_justify="left")
    for column in ("setting", "what"):
        table.add_column(column)
    for column in ("found", "at most", "met"):
        table.add_column(column, justify="right")
    for target in targets(report):
        met = "yes" if target.met else "no"
        table.add_row(target.setting, target.what, f"{target.found:.3f}", f"{target.most:g}", met)
    return table
