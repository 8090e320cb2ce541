"""Multiple choice after a few examples: which positions are computed, and what that takes.

`python -m benchmarks.shared_contexts [TASK ...] [--model NAME] [--items N] [--shots N]
[--same-examples] [--stages S ...] [--threads N] [--repeats N]` scores four answers to each item
with lm-evaluation-harness's `hf`, with `schedcc` as it is, and with `share_contexts=True`. Each
contender has processes of its own that stay, and all take turns. Items are passages of the
documentation that every Python has, of which one of four endings is the right one:

- `letters`: the endings stand in the question, and the answers are the tokens A to D;
- `texts`: the answers are the endings themselves, of several tokens.

Every item has examples of its own, as the harness draws them; with `--same-examples` all items have
the same, as in tasks whose sampler is `first_n` (MMLU). Positions of a contender are counted where
tokens are embedded, padding included. Scores and chosen answers are compared with those of `hf`.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from statistics import median

from benchmarks.report.results import Timing
from benchmarks.shared_contexts.contenders import HF, Measured, contenders, process
from benchmarks.shared_contexts.questions import CHOICES, TASKS, requests


def report(title: str, found: dict[str, list[Measured]]) -> None:
    """Print what contenders needed for one task."""
    reference = found[HF][0]
    base = Timing(contender=HF, seconds=tuple(one.seconds for one in found[HF]))
    print(f"\n{title}: {reference.positions:,} positions, {reference.distinct:,} of them distinct")
    print(
        f"{'':24}{'computed':>10}{'own CPU s':>11}{'seconds':>9}{'/ hf':>7}{'differs by':>12}",
        end="",
    )
    print("  same choices")
    for name, runs in found.items():
        timing = Timing(contender=name, seconds=tuple(one.seconds for one in runs))
        pairs = zip(runs[0].log_probs, reference.log_probs, strict=True)
        same = sum(a == b for a, b in zip(runs[0].chosen, reference.chosen, strict=True))
        print(
            f"{name:24}{runs[0].computed:10,}{median(one.own_cpu for one in runs):11.2f}"
            f"{timing.median:9.2f}{timing.ratio(base):7.3f}"
            f"{max(abs(a - b) for a, b in pairs):12.1e}  {same} of {len(reference.chosen)}"
        )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--same-examples", action="store_true")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of a process; default: cores / stages")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    tasks = options.tasks or TASKS
    asked = {
        task: requests(task, options.items, options.shots, same_examples=options.same_examples)
        for task in tasks
    }
    names = contenders(options.stages, options.threads)
    found: dict[str, dict[str, list[Measured]]] = {
        task: {name: [] for name in names} for task in tasks
    }
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(process(options.model, options.threads, name, arguments))
            for name, arguments in names.items()
        }
        for _ in range(options.repeats):
            for task, results in found.items():
                for name, connection in processes.items():
                    connection.send(asked[task])
                    results[name].append(connection.recv())
                    print(f"{task}, {name}: {results[name][-1].seconds:.2f} s", file=sys.stderr)
        load = os.getloadavg()[0]
    print(
        f"{options.model}: {options.items} items of {CHOICES} answers, {options.shots} examples "
        f"before each; medians of {options.repeats} run(s) in turn; load of the machine: {load:.1f}"
    )
    for task, results in found.items():
        report(task, results)


if __name__ == "__main__":
    main()
