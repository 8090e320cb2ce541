"""Edit files at random, and read them: `python -m tests.tools.fuzz --kind plan --number 100000`."""

import argparse
import faulthandler
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.tools.fuzz.kinds import KINDS, in_words

SECONDS = 60
"""More than any small file may take, on however busy a machine."""


class TooLongError(BaseException):
    """A reader takes too long; no reader may catch that."""


class BrokenPromiseError(Exception):
    """A reader did something else with a file than it may; names the file, which is kept."""


class Tried(NamedTuple):
    """What became of the edited files of a kind."""

    kind: str
    ends: Counter[str]
    seconds: float
    slowest: float
    """Seconds of the file that took longest."""

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return (
            f"{self.kind}: {self.ends.total()} files: {in_words(self.ends)}; "
            f"{self.seconds:.0f} s, the slowest {self.slowest:.2f} s; peak {peak} MB"
        )


def fuzz(
    name: str, number: int, seed: int, folder: Path, megabytes: int | None = None, first: int = 0
) -> Tried:
    """Try `number` files of a kind, each from a random state of its own, from `first` on.

    Raises:
        BrokenPromiseError: a reader broke its promise.
    """
    kind = KINDS[name](folder)
    for origin in kind.seeds:  # which imports all that is needed, and fills caches
        kind.read(origin, origin.content, Random(0))
    ends: Counter[str] = Counter()
    began, slowest = time.perf_counter(), 0.0
    with bounded_memory(megabytes or KINDS[name].megabytes):
        for attempt in range(first, first + number):
            random = Random(f"{seed} {attempt}")
            origin = random.choice(kind.seeds)
            content = kind.edit(origin.content, random, kind.seeds)
            signal.alarm(SECONDS)
            start = time.perf_counter()
            try:
                ends[kind.read(origin, content, random)] += 1
            except (Exception, TooLongError) as error:
                kept = Path(f"fuzz-{name}-{seed}-{attempt}{origin.suffix}").resolve()
                kept.write_bytes(content)
                raise BrokenPromiseError(
                    f"{name}: attempt {attempt} of seed {seed}: {type(error).__name__}: "
                    f"{str(error)[:2000]}; see {kept}"
                ) from error
            finally:
                signal.alarm(0)
                slowest = max(slowest, time.perf_counter() - start)
    return Tried(name, ends, time.perf_counter() - began, slowest)


@contextmanager
def bounded_memory(megabytes: int) -> Iterator[None]:
    """Bound this process to so much address space beyond what it has, on Linux."""
    sizes, (before, most) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if sizes.exists():
        pages = int(sizes.read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


def in_this_process(names: list[str], options: argparse.Namespace) -> bool:
    """Try the kinds, one after the other; whether all promises were kept."""
    faulthandler.enable()
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")  # libraries warn of what they are given
    warnings.simplefilter("error", RuntimeWarning)  # of numpy, about numbers that are none
    kept = True
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=options.folder) as folder:
            try:
                tried = fuzz(
                    name,
                    options.number,
                    options.seed,
                    Path(folder),
                    options.megabytes,
                    options.first,
                )
            except BrokenPromiseError as error:
                kept = False
                print(error, file=sys.stderr, flush=True)
                if options.verbose:
                    raise
            else:
                print(tried, flush=True)
    return kept


def in_processes(names: list[str], options: argparse.Namespace) -> bool:
    """Try each kind in a process of its own, some at a time; whether all promises were kept."""
    given = {"--number": options.number, "--seed": options.seed, "--first": options.first}
    words = [word for option, value in given.items() for word in (option, str(value))]
    if options.megabytes is not None:
        words += ["--megabytes", str(options.megabytes)]
    if options.verbose:
        words.append("--verbose")

    def tried(name: str) -> bool:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=options.folder) as folder:
            command = [sys.executable, "-m", "tests.tools.fuzz", "--kind", name, "--folder", folder]
            status = subprocess.run([*command, *words], check=False).returncode
            if status < 0:  # a library that is not Python has crashed
                # Where there is such a folder, the new one is put into it.
                kept = shutil.move(folder, Path(f"fuzz-{name}-{options.seed}-crash").resolve())
                os.mkdir(folder)
                said = signal.strsignal(-status)
                print(f"{name}: {said}; see {kept}", file=sys.stderr, flush=True)
        return status == 0

    with ThreadPoolExecutor(options.jobs) as several:
        return all([*several.map(tried, names)])


def too_long(*_: object) -> None:
    raise TooLongError(f"more than {SECONDS} s")


def main() -> int:
    """Try as many files of each kind as asked for, and print how many ended how."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--number", type=int, default=1000, help="of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="attempt, to repeat one")
    parser.add_argument("--megabytes", type=int, help="of address space, at most")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument(
        "--verbose", action="store_true", help="end a process with the first traceback"
    )
    options = parser.parse_args()
    names = options.kind or list(KINDS)
    return not (in_this_process if options.jobs == 1 else in_processes)(names, options)


if __name__ == "__main__":
    raise SystemExit(main())
