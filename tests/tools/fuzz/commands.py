"""The files of `schedcc`, given to its commands: exit status 0, 1 or 2, with a sentence.

Plans and torch's CSV files go to `check` and to a command that draws, simulates or converts them; a
rank's file of a recording beside its plan goes to the commands that read recordings; costs go to
`simulate`, `compare` and `trace`. What is called is the function of the command, in this process.
"""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import typer

from schedcc import Outcome, UnsoundPlanError, compile_pipeline, compile_stage
from schedcc.analysis import times
from schedcc.cli.breakdown import breakdown_command
from schedcc.cli.exchange import export_command, import_command
from schedcc.cli.plans import check_command, show
from schedcc.cli.recordings import conform_command, postmortem_command
from schedcc.cli.timing import compare_command, simulate_command
from schedcc.cli.trace import trace_command
from schedcc.io.exchange import to_torch_csv
from schemas import Costs, PipelinePlan
from schemas.costs import SingleCost
from schemas.recording import rank_file
from tests.support.command_line import Run
from tests.support.paths import ROOT
from tests.support.recorded_lines import lines_of_run, write
from tests.tools.fuzz.edits import Seed, edited_bytes, edited_json, edited_lines
from tests.tools.fuzz.kinds import LONGEST, Edit, Kind

LARGEST = 100_000
"""Bytes of a file. A plan takes about 40 times the memory of its file; what is small stays so."""

FINDINGS = 1000
"""Of a plan that is to be used and is not sound: so many may be listed."""

FIRST_FORMAT = ("blocking_m3_s3.plan1.json", "stage_1_of_3_m4.stage-plan1.json")
TORCH = (
    "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n",
    "0F0,0F1,,0B0,0B1\n,1F0,(1F1;1B0)OVERLAP_F_B,1B1\n",
)
"""Files that leave the transfers to torch."""

RECORDED = (3, 2)
COSTS = (
    Costs(),
    Costs(forward=(1.0, 2.0), transfer=(0.5,), load=0.25, collective=0.1),
    Costs(activation_bytes=2**20, bandwidth=1e9, transfer=1e-6),
    Costs(
        single=(
            SingleCost(of="forward", micro_batch=2, seconds=0.5),
            SingleCost(of="transfer", micro_batch=0, stage_id=0, seconds=2.0),
            SingleCost(of="load", micro_batch=1, seconds=0.0),
        )
    ),
)


def plans(folder: Path) -> Kind:
    """Plan files of both formats and both forms, and of all schedules."""
    logits = Outcome(return_logits=True, replicas=2)
    made = [
        *_pipelines(logits),
        compile_pipeline(3, 4, schedule="interleaved", ranks=2),
        compile_pipeline(2, 4, schedule="v_shape", ranks=2, overlap=True),
        *(compile_stage(3, 3, 1, overlap=overlap) for overlap in (False, True)),
    ]
    texts = [plan.model_dump_json().encode() for plan in made]
    texts += [(ROOT / "tests" / "data" / "plans" / file).read_bytes() for file in FIRST_FORMAT]
    file, drawn, output = (folder / name for name in ("plan.json", "drawn", "output"))
    commands = [
        partial(show, file, html=drawn, svg=output),
        partial(simulate_command, file),
        partial(simulate_command, file, as_json=True),
        partial(trace_command, file, output=output),
        partial(export_command, file, output=output),
    ]
    return _checked(file, [Seed(".json", text) for text in texts], edited_json, commands)


def csv_files(folder: Path) -> Kind:
    """CSV files that this project writes, and others that leave the transfers to torch."""
    own = [to_torch_csv(plan) for plan in _pipelines(Outcome(return_logits=True))[2:]]
    seeds = [Seed(".csv", text.encode()) for text in (*own, *TORCH)]
    file, drawn, output = (folder / name for name in ("plan.csv", "drawn", "output"))
    commands = [
        partial(show, file, html=drawn, svg=output),
        partial(simulate_command, file),
        partial(import_command, file, None, None, output),
        partial(import_command, file, 3, "compute_only", output),
    ]
    return _checked(file, seeds, edited_bytes, commands)


def recordings(folder: Path) -> Kind:
    """The file of rank 1 in a recording whose run is cut short after a whole one."""
    directory, plan_file = folder / "recording", folder / "plan.json"
    drawn, output = folder / "drawn", folder / "output"
    seeds = []
    for overlap in (True, False):
        plan = compile_pipeline(*RECORDED, overlap=overlap)
        lines = [*lines_of_run(plan, 1), *lines_of_run(plan, 1, run=1)[:-4]]
        with TemporaryDirectory() as place:
            content = write(Path(place), 1, RECORDED[1], lines).read_bytes()
        seeds.append(Seed(".jsonl", content))
    plan_file.write_text(plan.model_dump_json())
    write(directory, 0, RECORDED[1], lines_of_run(plan, 0))
    commands = [
        partial(postmortem_command, directory),
        partial(conform_command, [plan_file, directory]),
        partial(breakdown_command, directory),
        partial(trace_command, directory, output=output),
        partial(trace_command, plan_file, directory, html=drawn, svg=output),
    ]
    file = directory / rank_file(1)
    return Kind(seeds, _small(edited_lines), partial(_read_by_one, file, commands))


def costs(folder: Path) -> Kind:
    """Costs of all kinds, beside a plan that is compiled, and one in a file."""
    file, plan_file = folder / "costs.json", folder / "plan.json"
    drawn, output = folder / "drawn", folder / "output"
    plan_file.write_text(compile_pipeline(4, 2, overlap=True).model_dump_json())
    often = [
        partial(simulate_command, plan_file, costs=file),
        partial(simulate_command, plan_file, costs=file, as_json=True),
    ]
    commands = [
        *often * 10,
        partial(simulate_command, micro_batches=4, stages=2, costs=file),
        partial(compare_command, 3, 2, costs=file, forward="1,2"),  # which compile for long
        partial(compare_command, 3, ranks=2, costs=file),
        partial(trace_command, plan_file, costs=file, output=output),
        partial(trace_command, plan_file, costs=file, html=drawn, svg=output),
    ]
    seeds = [Seed(".json", known.model_dump_json().encode()) for known in COSTS]
    edit = partial(edited_json, keys=tuple(Costs.model_fields))
    return Kind(seeds, _small(edit), partial(_read_by_one, file, commands))


def check_file(file: Path) -> Run:
    """What `schedcc check` does with a file.

    Raises:
        Exception: whatever the command does not turn into an exit status.
    """
    return ended(lambda: check_command(file))


_OUT = io.StringIO()
"""What a command prints; always the same one, because typer keeps every stream that it has seen."""


def ended(command: Callable[[], None]) -> Run:
    """How the function of a command ends."""
    _OUT.seek(0)
    _OUT.truncate()
    try:
        with contextlib.redirect_stdout(_OUT):
            command()
    except typer.Exit as ended:
        return Run(ended.exit_code, _OUT.getvalue(), "")
    except ValueError as error:  # which the command line prints, with exit status 2
        said = str(error)
        if isinstance(error, UnsoundPlanError):  # it lists findings, some of which have lines
            said = " ".join(said.splitlines())
        return Run(2, _OUT.getvalue(), f"{said}\n")
    return Run(0, _OUT.getvalue(), "")


def complaint(file: Path, run: Run) -> str | None:
    """How `schedcc check` breaks the promise: exit 0, 1 or 2, with a sentence."""
    if run.status == 2:
        sentence = run.err.removesuffix("\n")
        fine = sentence.startswith(f"{file}: ") and sentence.isprintable()
        return None if fine and run.out == "" and len(sentence) < LONGEST else "no line of error"
    if run.status not in (0, 1):
        return f"exit status {run.status}"
    verdict = (run.out.splitlines() or [""])[-1]
    word = "sound" if run.status == 0 else "finding"
    fine = verdict.startswith(f"{file}: ") and word in verdict and run.err == ""
    return None if fine else "no verdict"


def complaint_of_others(run: Run) -> str | None:
    """How another command breaks the promise: exit 0, 1 or 2, and a line of error or none."""
    if run.status == 2:
        fine = run.out == "" and run.err.count("\n") == 1 and run.err[:-1].isprintable()
        return None if fine and len(run.err) < FINDINGS * LONGEST else "no line of error"
    fine = run.status == 0 or (run.status == 1 and run.out)
    return None if fine and not run.err else "no verdict"


def _pipelines(outcome: Outcome) -> list[PipelinePlan]:
    return [
        compile_pipeline(*size, overlap=overlap, outcome=outcome)
        for size in ((1, 1), (2, 3), (4, 2))
        for overlap in (False, True)
    ]


def _checked(file: Path, seeds: list[Seed], edit: Edit, commands: list[Callable[[], None]]) -> Kind:
    """Files that `schedcc check` reads, and one other command at random."""

    def read(_: Seed, content: bytes, random: Random) -> str:
        file.write_bytes(content)
        # Small plans are decided on the backend of large ones, too.
        with patch.object(times, "GRAPH_LIMIT", random.choice((0, times.GRAPH_LIMIT))):
            run = check_file(file)
            _require(complaint(file, run), run)
            other = ended(random.choice(commands))
        _require(complaint_of_others(other), other)
        return f"exit {run.status}"

    return Kind(seeds, _small(edit), read)


def _read_by_one(
    file: Path, commands: list[Callable[[], None]], _: Seed, content: bytes, random: Random
) -> str:
    """Have a file read by one of the commands; how it ended."""
    file.write_bytes(content)
    run = ended(random.choice(commands))
    _require(complaint_of_others(run), run)
    return f"exit {run.status}"


def _require(complaint: str | None, run: Run) -> None:
    assert complaint is None, f"{complaint}: {run.out[-500:]!r}, {run.err[:LONGEST]!r}"


def _small(edit: Edit) -> Edit:
    """The edit, until its file is small."""

    def edited(content: bytes, random: Random, others: list[Seed]) -> bytes:
        while True:
            try:
                found = edit(content, random, others)
            except MemoryError:
                continue  # lists repeated within lists that are repeated: no small file
            if len(found) <= LARGEST:
                return found

    return edited
