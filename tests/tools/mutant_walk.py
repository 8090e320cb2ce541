"""Random walks from sound plans over mutants of them: the checker against the executor.

`make mutants N=100000` (`python -m tests.tools.mutant_walk --number 100000`) tries that many.
"""

import argparse
from collections import Counter
from random import Random
from typing import get_args

from schedcc import compile_pipeline
from schedcc.analysis.times import Backend
from schedcc.testing import TRANSPORT_MODELS, assert_agreement, random_mutant
from schedcc.verify import verdict
from schemas import PipelinePlan, TransportModel
from tests.support.plans import all_outcomes

STRICTEST, MODELS = TRANSPORT_MODELS[0], TRANSPORT_MODELS


def compare(plan: PipelinePlan, transport: TransportModel, backend: Backend) -> str:
    """`assert_agreement`, and what is known of plans with one stage on each rank.

    On a chain whose channels match, no order of posts and waits can deadlock; collectives of
    different stages in different orders can.
    """
    came = assert_agreement(plan, transport, backend)
    if came != "sound" and not transport.step_barrier and plan.is_one_to_one:
        report = verdict(plan, transport, backend)
        codes = {finding.code.value for finding in report.errors()}
        deadlocks = [f for f in report.errors() if f.code == "deadlock"]
        by_transfers = any("(collective)" not in finding.message for finding in deadlocks)
        assert not by_transfers or codes & {"structure", "channel"}, plan.model_dump_json()
    return came


def a_plan(random: Random, micro_batches: int = 8, stages: int = 6) -> PipelinePlan:
    """A compiled plan of any schedule, of at most so many micro-batches and stages."""
    schedule = random.choice(("inference", "inference", "interleaved", "v_shape"))
    held = {"inference": 1, "v_shape": 2}.get(schedule) or random.randint(1, 3)
    ranks = random.randint(1, max(1, stages // held))
    return compile_pipeline(
        random.randint(1, micro_batches),
        held * ranks,
        schedule=schedule,
        ranks=ranks,
        overlap=random.random() < 0.5,
        outcome=random.choice(list(all_outcomes())),
    )


def a_model(random: Random) -> TransportModel:
    """A model of the transport, sometimes with a barrier between steps."""
    model = random.choice(MODELS)
    return model.model_copy(update={"step_barrier": random.random() < 0.25})


def walk(number: int, seed: int) -> Counter[str]:
    """Compare on `number` mutants; the count of each verdict.

    From a plan to a mutant of it, and on from there as long as it is sound.
    """
    random = Random(seed)
    verdicts: Counter[str] = Counter()
    plan = a_plan(random)
    for _ in range(number):
        mutant = random_mutant(plan, random)
        came = compare(mutant, a_model(random), random.choice(get_args(Backend)))
        verdicts[came] += 1
        if random.random() < 0.02:
            plan = a_plan(random)
        elif came == "sound" or random.random() < 0.02:  # some flaws show only in company
            plan = mutant
    return verdicts


def main() -> None:
    """Compare on as many mutants as asked for, and print how many got which verdict."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    verdicts = walk(options.number, options.seed)
    print(f"{options.number} mutants: {', '.join(f'{n} {v}' for v, n in verdicts.most_common())}")


if __name__ == "__main__":
    main()
