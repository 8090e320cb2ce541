"""Which stage holds the others up, and what another partition would give, from measured times."""

import shlex
from collections.abc import Sequence
from itertools import accumulate, pairwise

import schedcc
from runtime.language.perplexity.job import Job
from runtime.modules.partition import balanced
from schedcc.io.plain_text import encodable
from schemas import Costs, PartitionAdvice, StageSummary

WORTH = 0.02
"""Of the predicted time; less is not worth saying."""
_SIMULATED = 64
"""Micro-batches that are simulated; each further one takes as long as the slowest stage."""


def bottleneck(stages: Sequence[StageSummary]) -> int:
    """The stage whose forwards take longest: no other order of the same work is faster."""
    return max(stages, key=lambda stage: stage.forward_seconds).stage_id


def measured_layers(stages: Sequence[StageSummary], estimated: Sequence[float]) -> list[float]:
    """Seconds of each layer: what its stage took, divided as the arithmetic of its layers is.

    Args:
        stages: In order; all layers are on them.
        estimated: Cost of each layer, in any unit.
    """
    seconds: list[float] = []
    for stage in stages:
        own = estimated[stage.first_layer : stage.first_layer + stage.layers]
        total = sum(own) or 1.0
        seconds += [stage.forward_seconds * cost / total for cost in own]
    return seconds


def advice(
    job: Job, stages: Sequence[StageSummary], estimated: Sequence[float], micro_batches: int
) -> PartitionAdvice | None:
    """A partition that would have been faster, if there is one worth it.

    Args:
        job: Says the number of stages, and how they were asked for.
        stages: What was measured, over `micro_batches`.
        estimated: Cost of each layer, in any unit.
        micro_batches: Those of this run.
    """
    one_to_one = job.order.placement == tuple(range(len(stages)))
    if len(stages) < 2 or micro_batches < 1 or not one_to_one:
        return None
    layers = measured_layers(stages, estimated)
    better = balanced(layers, len(stages))
    now = (*(stage.first_layer for stage in stages), len(estimated))
    before, after = (
        predicted_seconds(job, layers, bounds, micro_batches) for bounds in (now, better)
    )
    if not after < before * (1 - WORTH):
        return None
    return PartitionAdvice(
        boundaries=better,
        predicted_seconds=after,
        predicted_now=before,
        command=command(job.command, better),
    )


def predicted_seconds(
    job: Job, layers: Sequence[float], boundaries: Sequence[int], micro_batches: int
) -> float:
    """How long a partition takes, by `schedcc.simulate`.

    Args:
        job: Says whether transfers cross forwards.
        layers: Seconds of each layer, for all micro-batches together.
        boundaries: Of the stages.
        micro_batches: Their number.
    """
    sums = [0.0, *accumulate(layers)]
    costs = tuple(max(0.0, sums[b] - sums[a]) / micro_batches for a, b in pairwise(boundaries))
    few = min(micro_batches, _SIMULATED)
    plan = schedcc.compile_pipeline(few, len(costs), overlap=job.overlap)
    makespan = schedcc.simulate(plan, Costs(forward=costs)).makespan
    return makespan + (micro_batches - few) * max(costs)


def command(words: Sequence[str], boundaries: Sequence[int]) -> str:
    """The command line that was given, with another partition."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--partition" and not word.startswith("--partition="):
            kept.append(word)
        skip = word == "--partition" and not skip
    return encodable(shlex.join(["pipeval", *kept, "--partition", ",".join(map(str, boundaries))]))
