"""Run the benchmarks: `python -m benchmarks [--setting NAME] [--repeats N] [--quick]`."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.links import measure_links, predict
from benchmarks.memory import MemoryJob, measure_memory
from benchmarks.processes import Job, measure
from benchmarks.report.results import Measured, MemoryOf, Report, Timing
from benchmarks.report.tables import tables
from benchmarks.schedules import measure_schedules, predict_schedules
from benchmarks.settings import SETTINGS, Setting
from benchmarks.workload import layers_per_stage
from runtime.distributed.processes import launch

NAMES = (*(setting.name for setting in SETTINGS), "memory")
QUICK_MEMORY = MemoryJob(own=(4, 16), peer=(4,))


def main(
    setting: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NAMES)}.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of every contender.")] = 9,
    quick: Annotated[
        bool, typer.Option(help="Small, once and not judged, to see that it works.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Where the report is written.")] = Path(
        "build/benchmarks.json"
    ),
) -> None:
    """Measure the runtime beside its peers, hand-written loops, and two limits."""
    wanted = setting or list(NAMES)
    if unknown := sorted(set(wanted) - set(NAMES)):
        raise typer.BadParameter(f"{unknown[0]!r} is no setting, needed one of {', '.join(NAMES)}")
    torch.set_num_threads(1)
    console = Console()
    measured: list[Measured] = []
    for one in SETTINGS:
        if one.name in wanted:
            console.print(f"measuring {one.title} ...")
            measured.append(_measured(one.smaller() if quick else one, 1 if quick else repeats))
    memory: list[MemoryOf] = []
    if "memory" in wanted:
        console.print("measuring memory ...")
        memory = launch(2, measure_memory, QUICK_MEMORY if quick else MemoryJob())
    report = Report.here(tuple(measured), tuple(memory))
    for table in tables(report, judged=not quick):
        console.print(table)
    if quick:
        console.print("a quick run is compared with no target")
    output.parent.mkdir(parents=True, exist_ok=True)
    report.write(output)
    console.print(f"written to {output}; load of this machine: {report.load:.1f}")


def _measured(setting: Setting, repeats: int) -> Measured:
    layers = layers_per_stage(setting)
    if setting.kind == "links":
        seconds = measure_links(setting, repeats)
    elif setting.kind == "schedules":
        seconds = measure_schedules(setting, repeats)
    else:
        seconds = launch(setting.stages, measure, Job(setting, layers, repeats))
    timings = tuple(Timing(contender=name, seconds=tuple(s)) for name, s in seconds.items())
    measured = Measured(setting=setting, layers_per_stage=layers, timings=timings)
    if setting.kind not in ("links", "schedules"):
        return measured
    simulated = predict if setting.kind == "links" else predict_schedules
    predicted = simulated(setting, measured.forward_seconds)
    return measured.model_copy(update={"predicted": predicted})


if __name__ == "__main__":
    typer.run(main)
