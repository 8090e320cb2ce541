"""Models of the harness, each in a process of its own, and what they make of requests."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.shared_contexts.questions import CHOICES, Request
from runtime.language.scoring.sharing import common_prefix_length

HF = "hf"


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


def distinct_positions(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many positions of sequences do not come after the same tokens as another one."""
    ordered = sorted(sequences)
    common = sum(common_prefix_length(before, after) for before, after in pairwise(ordered))
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
