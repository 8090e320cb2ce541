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
import multiprocessing
import os
import pydoc_data.topics
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.report.results import Timing
from runtime.language.scoring.sharing import in_common

HF = "hf"
CHOICES = 4
WORDS, ENDING = 24, 5
"""Of a passage, and of what it may end with."""
POOL = 64
"""Items that examples are drawn from."""

Request = tuple[str, str]
"""A context, and one of its answers."""


@dataclass(frozen=True)
class Item:
    """A passage, and four endings."""

    passage: str
    endings: tuple[str, ...]
    right: int
    """Which of them it has."""

    def context(self, task: str) -> str:
        """What stands before the answer."""
        if task == "texts":
            return self.passage
        lines = [f"{letter}. {end}" for letter, end in zip("ABCD", self.endings, strict=True)]
        return "\n".join([self.passage, *lines, "Answer:"])

    def answers(self, task: str) -> list[str]:
        """What may stand behind the context."""
        return [f" {answer}" for answer in (self.endings if task == "texts" else "ABCD")]

    def example(self, task: str) -> str:
        """The item with its right answer."""
        return self.context(task) + self.answers(task)[self.right]


TASKS = ("letters", "texts")


class Measured(NamedTuple):
    """What a contender made of the requests of a task."""

    seconds: float
    own_cpu: float
    """CPU seconds of the process that is asked, which other work of the machine hardly changes."""
    positions: int
    """Of all requests."""
    distinct: int
    """Of these, those that do not come after the same tokens as another one."""
    computed: int
    log_probs: list[float]

    @property
    def chosen(self) -> list[int]:
        """The most probable answer to each item."""
        items = [self.log_probs[n : n + CHOICES] for n in range(0, len(self.log_probs), CHOICES)]
        return [answers.index(max(answers)) for answers in items]


def items(count: int, seed: int = 0) -> list[Item]:
    """Items whose endings are all taken from different places."""
    draw = random.Random(seed)
    words = [word for text in pydoc_data.topics.topics.values() for word in text.split()]
    length = WORDS + ENDING
    places = draw.sample(range(0, len(words) - length, length), CHOICES * count)
    found = []
    for number in range(count):
        start, *others = places[CHOICES * number : CHOICES * (number + 1)]
        endings = [" ".join(words[at + WORDS : at + length]) for at in (start, *others)]
        right = draw.randrange(CHOICES)
        endings[0], endings[right] = endings[right], endings[0]
        found.append(Item(" ".join(words[start : start + WORDS]), tuple(endings), right))
    return found


def requests(task: str, count: int, shots: int, *, same_examples: bool = False) -> list[Request]:
    """The answers to all items, one item after the other, each behind its examples."""
    draw = random.Random(1)
    pool, asked = items(POOL + count)[:POOL], items(POOL + count)[POOL:]
    found = []
    for item in asked:
        examples = pool[:shots] if same_examples else draw.sample(pool, shots)
        parts = [*(example.example(task) for example in examples), item.context(task)]
        found += [("\n\n".join(parts), answer) for answer in item.answers(task)]
    return found


def distinct_positions(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many positions of sequences do not come after the same tokens as another one."""
    ordered = sorted(sequences)
    common = sum(in_common(before, after) for before, after in pairwise(ordered))
    return sum(map(len, ordered)) - common


def measured(model: Any, asked: Sequence[Request]) -> Measured:
    """Have a model of the harness score requests."""
    from lm_eval.api.instance import Instance

    def instances(some: Sequence[Request]) -> list[Any]:
        return [Instance("loglikelihood", {}, arguments, idx=0) for arguments in some]

    encoded = [model._encode_pair(*request) for request in asked]
    inputs = [(*context, *answer[:-1]) for context, answer in encoded]
    with embedded_positions(model.vocab_size) as sizes:
        began, own = time.perf_counter(), time.process_time()
        answers = model.loglikelihood(instances(asked), disable_tqdm=True)
        seconds, own = time.perf_counter() - began, time.process_time() - own
    return Measured(
        seconds=seconds,
        own_cpu=own,
        positions=sum(map(len, inputs)),
        distinct=distinct_positions(inputs),
        computed=sum(sizes),
        log_probs=[log_prob for log_prob, _ in answers],
    )


@contextmanager
def embedded_positions(vocabulary: int) -> Iterator[list[int]]:
    """Notes the size of everything that an embedding of tokens is given in this process."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings >= vocabulary:
            sizes.append(inputs[0].numel())

    with register_module_forward_pre_hook(note):
        yield sizes


def contenders(stages: Sequence[int], threads: int | None) -> dict[str, dict[str, Any]]:
    """What each contender's class is given beside the model."""
    found: dict[str, dict[str, Any]] = {HF: {"device": "cpu", "batch_size": 1}}
    for number in stages:
        # Few positions are scored, so the head has little to do: blocks alone are divided.
        own = {"stages": number, "partition": "uniform", "threads": threads}
        found[f"schedcc, S = {number}"] = own
        found[f"schedcc, S = {number}, shared"] = own | {"share_contexts": True}
    return found


def serve(
    connection: Connection,
    model: str,
    threads: int | None,
    name: str,
    arguments: dict[str, Any],
) -> None:
    """Be one contender: score what comes, until nothing does."""
    if threads is not None:
        torch.set_num_threads(threads)
    from lm_eval.api.registry import get_model

    from runtime.language.harness import register
    from runtime.language.models import locate_model

    register()
    contender = get_model(HF if name == HF else "schedcc")(
        pretrained=str(locate_model(model).directory), dtype="float32", **arguments
    )
    measured(contender, [("The first", " words"), ("The first", " words of all")])
    try:
        connection.send(None)
        while True:
            connection.send(measured(contender, connection.recv()))
    except EOFError:
        pass
    if name != HF:
        contender.close()


@contextmanager
def process(*arguments: Any) -> Iterator[Connection]:
    """A contender in a process of its own, once it has loaded its model."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    started = context.Process(target=serve, args=(theirs, *arguments))
    started.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
    finally:
        ours.close()
        started.join()


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
