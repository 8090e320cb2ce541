"""Random edits of valid files, given to `schedcc`: exit 0, 1 or 2, with a sentence.

Plans and torch's CSV files go to `check`; a rank's file of a recording to `postmortem` and
`conform`.

`make fuzz N=1000000` (`python -m tests.tools.fuzz --number 1000000`) tries a million, with little
more memory than the imports take. A file that breaks the promise is kept, and named.
"""

import argparse
import contextlib
import io
import json
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import typer

from schedcc import Outcome, compile_pipeline, compile_stage
from schedcc.analysis import times
from schedcc.cli.plans import check_command
from schedcc.cli.recordings import conform_command, postmortem_command
from schedcc.io.exchange import to_torch_csv
from schemas.recording import rank_file
from tests.support.command_line import Run
from tests.support.recorded_lines import lines_of_run, write

LARGEST = 100_000
"""Bytes of a file. A plan takes about 40 times the memory of its file; what is small stays so."""

SECONDS = 60
"""More than any small file may take, on however busy a machine."""


class Seed(NamedTuple):
    """A valid file."""

    suffix: str
    content: bytes


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


TORCH = ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", "0F0,,0F1\n,1F0,(1F1;1B0)OVERLAP_F_B\n,,2F0,2F1\n")
"""Files that leave the transfers to torch."""


def recorded(*, overlap: bool) -> bytes:
    """The file of stage 1 in a recording of `PLAN`, whose run is cut short after a whole one."""
    plan = compile_pipeline(*RECORDED, overlap=overlap)
    with TemporaryDirectory() as folder:
        lines = [*lines_of_run(plan, 1), *lines_of_run(plan, 1, run=1)[:-4]]
        return write(Path(folder), 1, RECORDED[1], lines).read_bytes()


RECORDED = (3, 2)


BYTES = (
    *(bytes([code]) for code in b'{}[]":,-.0159eEF\\/ \n\t\x00\x7f\xc3\xff'),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e400", b"-0", b"0x1", b"\\ud800", b"\\u0000"),
    *(b"[" * 300, b'{"a":' * 300, b"9" * 25, b"9" * 5000, b"\xef\xbb\xbf", b"0SEND_F9", b"1F"),
)
"""What an edit of bytes puts into a file."""


def edited_bytes(content: bytes, random: Random, others: list[Seed]) -> bytes:
    """`content` with some bytes changed, lost, repeated, put in, or taken from another file."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        start = random.randrange(len(content) + 1)
        stop = min(len(content), start + random.choice((0, 1, 1, 2, 8, 60)))
        other = random.choice(others).content
        begin = random.randrange(len(other))
        new = random.choice(
            (
                b"",
                random.choice(BYTES),
                content[start:stop] * random.choice((2, 2, 50)),
                bytes([random.randrange(256)]),
                other[begin : begin + random.choice((1, 20, 400))],
            )
        )
        content = content[:start] + new + content[stop:]
    return content if random.random() < 0.95 else content[: random.randrange(len(content) + 1)]


def values(random: Random) -> Any:
    """Something that a file may hold in the wrong place."""
    deep: Any = 0
    for _ in range(random.choice((1, 5, 150, 400))):
        deep = random.choice(([deep], {"a": deep}))
    return random.choice(
        (
            *(None, True, False, 0, 1, 2, 3, -1, -(10**18), 10**9, 2**31, 2**63, 2**64, 10**400),
            *(0.0, 1.0, -0.5, 1e308, "", "1", "ForwardPass", "schedcc.plan/1", "é\n\u2028" * 9),
            *([], {}, [[]], [0] * 50, {"op": "ForwardPass"}, {"op": None}, deep),
            {"op": "BroadcastLoss", "source": random.choice((0, 10**30))},
            {"op": random.choice(("GroupStart", "GroupEnd"))},
        )
    )


def containers(data: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """Every object and list that is not empty."""
    if isinstance(data, dict | list) and data:
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from containers(value)


AGAIN = "\u200b"
"""Tells a key from itself while it is in an object, and is taken out of the file."""
HEADER = ("micro_batches", "stages", "num_buffers", "stage_id", "format", "schedule")


def edited_values(content: bytes, random: Random) -> bytes:
    """`content` with some values changed, lost, repeated, moved or under another key."""
    data = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        everything = list(containers(data))
        place = data if random.random() < 0.15 else random.choice(everything)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = random.choice(keys)
        if place is data and random.random() < 0.7:
            key = random.choice(HEADER)
        edit: Callable[[Any, Any, Random, Any], None] = random.choice(EDITS)
        edit(place, key, random, random.choice(everything))
    if isinstance(data, dict) and random.random() < 0.1:  # a key that comes twice
        data[random.choice([*data, "x"]) + AGAIN] = values(random)
    return json.dumps(data, ensure_ascii=False).replace(AGAIN, "").encode()


def _replace(place: Any, key: Any, random: Random, _: Any) -> None:
    place[key] = values(random)


def _renumber(place: Any, _: Any, random: Random, __: Any) -> None:
    numbers = [k for k in place if isinstance(place[k], int)] if isinstance(place, dict) else []
    if numbers:
        place[random.choice(numbers)] = random.choice((0, 1, 1, 2, 3, 5, -1, 10**9, 10**25))


def _lose(place: Any, key: Any, _: Random, __: Any) -> None:
    if isinstance(place, dict):
        place.pop(key, None)
    else:
        del place[key]


def _add(place: Any, key: Any, random: Random, other: Any) -> None:
    new = random.choice((values(random), json.loads(json.dumps(other))))
    if isinstance(place, dict):
        place[random.choice(("x", "", "op", "peer", "a\nb", str(key) + " "))] = new
    else:
        place.insert(random.randint(0, len(place)), new)


def _repeat(place: Any, key: Any, random: Random, _: Any) -> None:
    if isinstance(place, list):
        place[key:key] = [place[key]] * random.choice((1, 1, 3, 200))


def _swap(place: Any, key: Any, random: Random, _: Any) -> None:
    if isinstance(place, list):
        other = random.randrange(len(place))
        place[key], place[other] = place[other], place[key]


EDITS = (_replace, _lose, _add, *(_renumber, _repeat, _swap) * 4)
"""Mostly those after which the file may still be a plan."""


def edited_lines(content: bytes, random: Random, others: list[Seed]) -> bytes:
    """`content` with some lines changed, lost, repeated or moved."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 5))):
        number = random.randrange(len(lines))
        other = random.randrange(len(lines))
        match random.randrange(5):
            case 0 if len(lines) > 1:
                del lines[number]
            case 1:
                lines[number:number] = [lines[number]] * random.choice((1, 3, 100))
            case 2:
                lines[number], lines[other] = lines[other], lines[number]
            case 3 if lines[number]:
                lines[number] = edited_bytes(lines[number], random, others)
            case _ if lines[number].startswith(b"{"):
                with contextlib.suppress(ValueError):
                    lines[number] = edited_values(lines[number], random)
    return b"\n".join(lines)


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
    yield ended(lambda: conform_command(folder / "plan.json", folder / "recording"))


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
    raise AssertionError("no exit status")


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
                    failure = complaint(file, run)
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


def _limit_memory(beyond: int) -> None:
    """Bound this process to so many bytes of address space beyond what it has, on Linux."""
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + beyond
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> None:
    """Try as many files as asked for, and print how many ended how, and the peak of memory."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=200, help="of address space, at most")
    options = parser.parse_args()
    _limit_memory(options.megabytes * 2**20)
    signal.signal(signal.SIGALRM, _too_long)
    with TemporaryDirectory() as folder:
        statuses = fuzz(options.number, options.seed, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    ended = ", ".join(f"{count} exit {status}" for status, count in sorted(statuses.items()))
    print(f"{options.number} files: {ended}; peak {peak} MB")


if __name__ == "__main__":
    main()
