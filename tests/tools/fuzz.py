"""Random edits of valid files, given to `schedcc`: exit 0, 1 or 2, with a sentence.

Plans and torch's CSV files go to `check`, and are drawn (`show --html --svg`); a rank's file of a
recording goes to `postmortem`, `conform` and `breakdown`, and is drawn below its plan.

`make fuzz N=1000000` (`python -m tests.tools.fuzz --number 1000000`) tries a million, with little
more memory than the imports take. A file that breaks the promise is kept, and named.
"""

import argparse
import contextlib
import io
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import typer

from schedcc import Outcome, compile_pipeline, compile_stage
from schedcc.analysis import times
from schedcc.cli.breakdown import breakdown_command
from schedcc.cli.plans import check_command, show
from schedcc.cli.recordings import conform_command, postmortem_command
from schedcc.cli.trace import trace_command
from schedcc.io.exchange import to_torch_csv
from schemas.recording import rank_file
from tests.support.command_line import Run
from tests.support.recorded_lines import lines_of_run, write
from tests.tools.edits import Seed, edited_bytes, edited_lines, edited_values

LARGEST = 100_000
"""Bytes of a file. A plan takes about 40 times the memory of its file; what is small stays so."""

SECONDS = 60
"""More than any small file may take, on however busy a machine."""


def seeds() -> list[Seed]:
    """Files of both formats and both forms, and of torch's."""
    logits = Outcome(return_logits=True, replicas=2)
    plans = [
        compile_pipeline(*size, overlap=overlap, outcome=logits)
        for size in ((1, 1), (2, 3), (4, 2))
        for overlap in (False, True)
    ]
    stages = [compile_stage(3, 3, 1, overlap=overlap) for overlap in (False, True)]
    texts = [plan.model_dump_json() for plan in (*plans, *stages)]
    return [
        *(Seed(".json", text.encode()) for text in texts),
        *(Seed(".csv", to_torch_csv(plan).encode()) for plan in plans[2:]),
        *(Seed(".csv", text.encode()) for text in TORCH),
        *(Seed(".jsonl", recorded(overlap=overlap)) for overlap in (False, True) for _ in range(2)),
    ]


TORCH = (
    "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n",
    "0F0,0F1,,0B0,0B1\n,1F0,(1F1;1B0)OVERLAP_F_B,1B1\n",
)
"""Files that leave the transfers to torch."""


def recorded(*, overlap: bool) -> bytes:
    """The file of stage 1 in a recording of `PLAN`, whose run is cut short after a whole one."""
    plan = compile_pipeline(*RECORDED, overlap=overlap)
    with TemporaryDirectory() as folder:
        lines = [*lines_of_run(plan, 1), *lines_of_run(plan, 1, run=1)[:-4]]
        return write(Path(folder), 1, RECORDED[1], lines).read_bytes()


RECORDED = (3, 2)


def edited(seed: Seed, random: Random, others: list[Seed]) -> bytes:
    """The content of a file with a few random edits, at most `LARGEST` bytes of it."""
    while True:
        try:
            if seed.suffix == ".jsonl":
                content = edited_lines(seed.content, random, others)
            elif seed.suffix == ".csv" or random.random() < 0.4:
                content = edited_bytes(seed.content, random, others)
            else:
                content = edited_values(seed.content, random)
        except MemoryError:
            continue  # lists repeated within lists that are repeated: no small file
        if len(content) <= LARGEST:
            return content


_OUT = io.StringIO()
"""What a command prints; always the same one, because typer keeps every stream that it has seen."""


def check_file(file: Path) -> Run:
    """What `schedcc check` does with a file: the command's function, in this process.

    Raises:
        Exception: whatever the command does not turn into an exit status.
    """
    return ended(lambda: check_command(file))


def examine_files(folder: Path) -> Iterator[Run]:
    """What `schedcc postmortem` and `conform` do with a recording beside its plan."""
    yield ended(lambda: postmortem_command(folder / "recording"))
    yield ended(lambda: conform_command([folder / "plan.json", folder / "recording"]))
    yield ended(lambda: breakdown_command(folder / "recording"))
    pictures = {"html": folder / "drawn.html", "svg": folder / "drawn.svg"}
    yield ended(lambda: trace_command(folder / "plan.json", folder / "recording", **pictures))


def draw_file(file: Path) -> Run:
    """What `schedcc show` does with a file when it draws it."""
    pictures = {name: file.with_name(f"drawn.{name}") for name in ("html", "svg")}
    return ended(lambda: show(file, **pictures))


def ended(command: Callable[[], None]) -> Run:
    """How the function of a command ends."""
    _OUT.seek(0)
    _OUT.truncate()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(_OUT):
            command()
    except typer.Exit as ended:
        return Run(ended.exit_code, _OUT.getvalue(), "")
    except ValueError as error:  # which the command line prints, with exit status 2
        return Run(2, _OUT.getvalue(), f"{error}\n")
    finally:
        signal.alarm(0)
    return Run(0, _OUT.getvalue(), "")


def complaint_of_drawing(run: Run) -> str | None:
    """How a command that draws breaks the promise: exit 0 or 2, with a sentence."""
    return complaint_of_recording(run) if run.status in (0, 2) else f"exit status {run.status}"


def complaint_of_recording(run: Run) -> str | None:
    """How a command on a recording breaks the promise: exit 0, 1 or 2, with a sentence."""
    if run.status == 2:
        fine = run.out == "" and run.err.count("\n") == 1 and run.err[:-1].isprintable()
        return None if fine else "no line of error"
    return None if run.status in (0, 1) and run.out and not run.err else "no verdict"


def complaint(file: Path, run: Run) -> str | None:
    """How a run breaks the promise: exit 0, 1 or 2, with a sentence."""
    if run.status == 2:
        sentence = run.err.removesuffix("\n")
        fine = sentence.startswith(f"{file}: ") and sentence.isprintable()
        return None if fine and run.out == "" and len(sentence) < 1000 else "no line of error"
    if run.status not in (0, 1):
        return f"exit status {run.status}"
    verdict = (run.out.splitlines() or [""])[-1]
    word = "sound" if run.status == 0 else "finding"
    fine = verdict.startswith(f"{file}: ") and word in verdict and run.err == ""
    return None if fine else "no verdict"


def fuzz(number: int, seed: int, folder: Path) -> Counter[int]:
    """Try `number` files; the count of each exit status.

    Raises:
        AssertionError: one broke the promise; it is kept in the working directory.
    """
    random, others = Random(seed), seeds()
    statuses: Counter[int] = Counter()
    plan = compile_pipeline(*RECORDED)
    (folder / "plan.json").write_text(plan.model_dump_json())
    write(folder / "recording", 0, RECORDED[1], lines_of_run(plan, 0))
    for attempt in range(number):
        origin = random.choice(others)
        content = edited(origin, random, others)
        file = folder / f"edited{origin.suffix}"
        try:
            # Small plans are decided on the backend of large ones, too.
            with patch.object(times, "GRAPH_LIMIT", random.choice((0, times.GRAPH_LIMIT))):
                if origin.suffix == ".jsonl":
                    file = folder / "recording" / rank_file(1)
                    file.write_bytes(content)
                    runs = list(examine_files(folder))
                    failure = next(filter(None, map(complaint_of_recording, runs)), None)
                    run = runs[random.randrange(2)]
                else:
                    file.write_bytes(content)
                    run = check_file(file)
                    failure = complaint(file, run) or complaint_of_drawing(draw_file(file))
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                raise
        if failure is not None:
            kept = Path(f"fuzz-{seed}-{attempt}{origin.suffix}").resolve()
            kept.write_bytes(file.read_bytes())
            raise AssertionError(f"attempt {attempt} of seed {seed}: {failure}; see {kept}")
        statuses[run.status] += 1
    return statuses


def limit_memory(beyond: int) -> None:
    """Bound this process to so many bytes of address space beyond what it has, on Linux."""
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + beyond
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def command_line(
    fuzz: Callable[[int, int, Path], Mapping[Any, int]],
    *,
    megabytes: int,
    form: Callable[[Any, int], str],
    description: str | None,
) -> None:
    """Try as many files as the options say, and print what became of them, and the peak of memory.

    Args:
        fuzz: `(number, seed, folder) -> how many ended how`.
        megabytes: Of address space, at most, unless an option says otherwise.
        form: How an end and its number are written.
        description: Of the command.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--megabytes", type=int, default=megabytes, help="of address space, at most"
    )
    options = parser.parse_args()
    limit_memory(options.megabytes * 2**20)
    signal.signal(signal.SIGALRM, too_long)
    with TemporaryDirectory() as folder:
        counts = fuzz(options.number, options.seed, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found = ", ".join(form(end, count) for end, count in sorted(counts.items()))
    print(f"{options.number} files: {found}; peak {peak} MB")


def main() -> None:
    """Try as many files as asked for, and print how many ended how, and the peak of memory."""
    command_line(
        fuzz,
        megabytes=200,
        form=lambda status, count: f"{count} exit {status}",
        description=main.__doc__,
    )


if __name__ == "__main__":
    main()
