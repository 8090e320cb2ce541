"""Schedules that nobody ships: any placement, and any order of forwards that the data allows."""

import random
from dataclasses import dataclass
from itertools import groupby, pairwise

from hypothesis import strategies as st

from schemas import GroupEnd, GroupStart, PipelinePlan, Step, StepInstruction


@dataclass(frozen=True)
class Listed:
    """A placement, and forwards in a random order: each as early as its rank and its input are."""

    ranks_of_stages: tuple[int, ...]
    seed: int
    name: str = "listed"

    def placement(self, _stages: int, _ranks: int) -> list[int]:
        return list(self.ranks_of_stages)

    def forwards(self, micro_batches: int, stages: int, _ranks: int) -> list[tuple[int, int, int]]:
        chosen = random.Random(self.seed)
        done: dict[tuple[int, int], int] = {}
        free: dict[int, int] = {}
        upcoming = [0] * stages  # the next micro-batch of each stage
        while len(done) < stages * micro_batches:
            ready = [
                stage
                for stage, m in enumerate(upcoming)
                if m < micro_batches and (stage == 0 or m < upcoming[stage - 1])
            ]
            stage = chosen.choice(ready)
            m, rank = upcoming[stage], self.ranks_of_stages[stage]
            before = [done.get(key, -1) for key in ((stage - 1, m), (stage, m - 1))]
            done[stage, m] = free[rank] = 1 + max(free.get(rank, -1), *before)
            upcoming[stage] += 1
        return [(step, stage, m) for (stage, m), step in done.items()]


class Looped:
    """Breadth first: all micro-batches pass a lap before the next lap begins."""

    name = "looped"

    def __repr__(self) -> str:
        return "Looped()"

    def placement(self, stages: int, ranks: int) -> list[int]:
        return [stage % ranks for stage in range(stages)]

    def forwards(self, micro_batches: int, stages: int, ranks: int) -> list[tuple[int, int, int]]:
        lap = max(micro_batches, ranks)
        return [
            (stage // ranks * lap + stage % ranks + m, stage, m)
            for stage in range(stages)
            for m in range(micro_batches)
        ]


@st.composite
def placements(draw: st.DrawFn, stages: int = 6, ranks: int = 3) -> tuple[int, ...]:
    """The rank of each stage: any, as long as every rank has one."""
    held = draw(st.integers(1, ranks))
    count = draw(st.integers(held, stages))
    others = st.lists(st.integers(0, held - 1), min_size=count - held, max_size=count - held)
    return tuple(draw(st.permutations([*range(held), *draw(others)])))


def listed(stages: int = 6, ranks: int = 3) -> st.SearchStrategy[Listed]:
    """Any placement, in any order."""
    return st.builds(Listed, placements(stages, ranks), st.integers(0, 2**20))


def edited(plan: PipelinePlan, seed: int) -> PipelinePlan:
    """The plan with instructions in other orders and steps: mostly still sound, mostly not ours."""
    chosen = random.Random(seed)
    programs = []
    for program in plan.programs:
        flat = [instruction for step in program.steps for instruction in step]
        for _ in range(3):
            at = chosen.randrange(max(1, len(flat) - 1))
            flat[at : at + 2] = reversed(flat[at : at + 2])
        cuts = sorted({0, len(flat), *(chosen.randrange(len(flat) + 1) for _ in range(4))})
        steps: tuple[Step, ...] = tuple(tuple(flat[a:b]) for a, b in pairwise(cuts))
        programs.append(program.model_copy(update={"steps": steps}))
    return plan.model_copy(update={"programs": tuple(programs)})


def grouped(plan: PipelinePlan, seed: int) -> PipelinePlan:
    """The plan with neighbouring posts in groups, of any size."""
    chosen = random.Random(seed)
    programs = []
    for program in plan.programs:
        steps: list[Step] = []
        for step in program.steps:
            found: list[StepInstruction] = []
            for posts, members in groupby(step, lambda i: i.op.startswith("Post")):
                run = list(members)
                while posts and len(run) > 1 and chosen.random() < 0.8:
                    size = chosen.randint(2, len(run))
                    found += [GroupStart(), *run[:size], GroupEnd()]
                    run = run[size:]
                found += run
            steps.append(tuple(found))
        programs.append(program.model_copy(update={"steps": tuple(steps)}))
    return plan.model_copy(update={"programs": tuple(programs)})
