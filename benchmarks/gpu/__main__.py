"""Ask a GPU what is said of it: `python -m benchmarks.gpu [--dry] [--row N]`."""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.isolation import answer_alone, asked_alone
from benchmarks.gpu.report import Result, markdown, versions, write
from benchmarks.gpu.rows import ROWS

LIMIT = 590.0
"""Seconds for all rows together."""


def main(arguments: list[str] | None = None) -> int:
    """Ask all rows, one after the other; 1 if one did not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="on the CPU, with stand-ins, small")
    parser.add_argument("--row", type=int, help="only that one, in this process")
    parser.add_argument("--only", type=int, nargs="+", help="these rows, each in its process")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="a folder")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    if not given.dry and not torch.cuda.is_available():
        print("there is no GPU that torch can use: --dry asks the CPU", file=sys.stderr)
        return 2
    if given.row is not None:
        answer_alone(given.row, given.output, dry=given.dry)
        return 0
    of, results, until = versions(dry=given.dry), list[Result](), time.monotonic() + LIMIT
    for row in ROWS:
        if given.only and row.number not in given.only:
            continue
        print(f"{row.number} {row.title} ...", flush=True)
        left = until - time.monotonic()
        if left < 1:
            results.append(Result(row.number, row.title, "left out", 0.0, ["no time left"]))
            continue
        result = asked_alone(row, given.output, min(row.limit, left), dry=given.dry)
        results.append(result)
        print("\n".join([f"  {result.status}", *(f"  {line}" for line in result.lines)]))
        write(given.output, results, of)
    print(f"\n{markdown(results, of)}\nwritten to {given.output}/gpu.md and gpu.json")
    return int(any(result.status not in ("held", "left out") for result in results))


if __name__ == "__main__":
    sys.exit(main())
