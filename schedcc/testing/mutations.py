"""Ways to spoil a plan: drop, repeat, swap or retarget its instructions."""

from collections.abc import Callable, Iterator
from itertools import combinations
from random import Random
from typing import Any, NamedTuple, cast

from schedcc.testing.plans import SYMBOLS, with_program
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    EpilogueInstruction,
    GroupEnd,
    GroupStart,
    MoveLogits,
    PipelinePlan,
    RankProgram,
    ReduceLoss,
    StepInstruction,
)

Flat = list[tuple[int, StepInstruction]]
"""A program's steps as one list of `(step, instruction)`."""


class Mutant(NamedTuple):
    """A spoilt plan, and how it came about."""

    kind: str
    stage_id: int
    victims: tuple[Any, ...]
    """What was dropped, repeated, retargeted or swapped; for a swap with all that was between."""
    plan: PipelinePlan

    def __str__(self) -> str:
        return f"{self.kind} on stage {self.stage_id}: {', '.join(map(repr, self.victims))}"


def flat(program: RankProgram) -> Flat:
    """The steps of a program as one list."""
    return [(step, i) for step, instructions in enumerate(program.steps) for i in instructions]


def with_steps(plan: PipelinePlan, program: RankProgram, items: Flat) -> PipelinePlan:
    """`plan` with other instructions in the steps of one of its programs."""
    steps: list[list[StepInstruction]] = [[] for _ in program.steps]
    for step, instruction in items:
        steps[step].append(instruction)
    changed = program.model_copy(update={"steps": tuple(map(tuple, steps))})
    return with_program(plan, changed)


def with_epilogue(
    plan: PipelinePlan, program: RankProgram, epilogue: list[EpilogueInstruction]
) -> PipelinePlan:
    """`plan` with another epilogue for one of its programs."""
    return with_program(plan, program.model_copy(update={"epilogue": tuple(epilogue)}))


def mutants(plan: PipelinePlan) -> Iterator[Mutant]:
    """Every plan that one mutation makes of the steps of `plan`."""
    for program in plan.programs:
        items = flat(program)

        def spoilt(
            kind: str, victims: tuple[Any, ...], changed: Flat, program: RankProgram = program
        ) -> Mutant:
            return Mutant(kind, program.rank, victims, with_steps(plan, program, changed))

        for k, (step, victim) in enumerate(items):
            yield spoilt("drop", (victim,), items[:k] + items[k + 1 :])
            yield spoilt("repeat", (victim,), items[: k + 1] + items[k:])
            for kind, field, value in retargetings(plan, victim):
                changed = (step, victim.model_copy(update={field: value}))
                yield spoilt(kind, (victim,), [*items[:k], changed, *items[k + 1 :]])
        for a, b in combinations(range(len(items)), 2):
            victims = tuple(instruction for _, instruction in items[a : b + 1])
            yield spoilt("swap", victims, swapped(items, a, b))


def swapped(items: Flat, a: int, b: int) -> Flat:
    """`items` with two instructions exchanged; the steps stay as long as they were."""
    changed = list(items)
    changed[a], changed[b] = (items[a][0], items[b][1]), (items[b][0], items[a][1])
    return changed


def retargetings(
    plan: PipelinePlan, instruction: StepInstruction
) -> Iterator[tuple[str, str, int]]:
    """`(kind, field, value)` for every other id, and for ids out of range."""
    ranges: dict[str, int] = {
        "micro_batch": plan.micro_batches,
        "buffer": plan.num_buffers,
        "peer": plan.stages,
        "peer_buffer": plan.num_buffers,
    }
    if not plan.is_one_to_one:
        ranges["stage"] = plan.stages
    for field, count in ranges.items():
        current = getattr(instruction, field, None)
        if current is not None:
            for value in (*range(count), -1, count, 10**12):
                if value != current:
                    reach = "in" if 0 <= value < count else "out of"
                    yield f"{field} {reach} range", field, value


def random_mutant(plan: PipelinePlan, random: Random) -> PipelinePlan:
    """`plan` with one random change, which may also add instructions of every kind."""
    header = {"micro_batches": plan.micro_batches, "num_buffers": plan.num_buffers}
    if random.random() < 0.03 and not plan.is_one_to_one:
        placement = list(plan.placement)
        placement[random.randrange(plan.stages)] = random.randrange(-1, plan.ranks + 1)
        return plan.model_copy(update={"placement": tuple(placement)})
    if random.random() < 0.03:
        field, value = random.choice(list(header.items()))
        return plan.model_copy(update={field: max(1, value + random.choice((-1, 1)))})
    program = random.choice(plan.programs)
    if random.random() < 0.2:
        return with_epilogue(plan, program, random_epilogue(plan, list(program.epilogue), random))
    items = flat(program)
    change: Callable[[PipelinePlan, int, Flat, Random], None] = random.choice(CHANGES)
    if items:
        change(plan, program.rank, items, random)
    return with_steps(plan, program, sorted(items, key=lambda item: item[0]))


def random_epilogue(
    plan: PipelinePlan, epilogue: list[EpilogueInstruction], random: Random
) -> list[EpilogueInstruction]:
    """An epilogue with one random change."""

    def stage() -> int:
        return random.randrange(-1, plan.stages + 1)

    new: EpilogueInstruction = random.choice(
        (
            ReduceLoss(reduction="avg"),
            ReduceLoss(reduction="sum"),
            ReduceLoss(reduction="none"),
            AllReduceLoss(),
            ComputeMetrics(),
            AllReduceMetrics(),
            BroadcastLoss(source=stage()),
            CollectLogits(),
            MoveLogits(source=stage(), destination=stage()),
            BroadcastLogits(source=stage()),
        )
    )
    changed = list(epilogue)
    match random.choice(("drop", "insert", "replace", "shuffle")) if epilogue else "insert":
        case "drop":
            del changed[random.randrange(len(changed))]
        case "insert":
            changed.insert(random.randint(0, len(changed)), new)
        case "replace":
            changed[random.randrange(len(changed))] = new
        case "shuffle":
            random.shuffle(changed)
    return changed


def _drop(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    del items[random.randrange(len(items))]


def _repeat(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    step, instruction = random.choice(items)
    items.insert(random.randint(0, len(items)), (step, instruction))


def _swap(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    a = random.randrange(len(items))
    b = min(len(items) - 1, a + random.choice((1, 1, 2, 5)))
    items[:] = swapped(items, a, b)


def _shift(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    instructions = [instruction for _, instruction in items]
    moved = instructions.pop(random.randrange(len(items)))
    instructions.insert(random.randrange(len(items)), moved)
    items[:] = [(step, i) for (step, _), i in zip(items, instructions, strict=True)]


def _retarget(plan: PipelinePlan, _: int, items: Flat, random: Random) -> None:
    k = random.randrange(len(items))
    step, instruction = items[k]
    if others := list(retargetings(plan, instruction)):
        _kind, name, value = random.choice(others)
        items[k] = (step, instruction.model_copy(update={name: value}))


def _insert(plan: PipelinePlan, stage_id: int, items: Flat, random: Random) -> None:
    symbol = random.choice(list(SYMBOLS))
    micro_batch = random.randrange(plan.micro_batches)
    if not plan.is_one_to_one and random.random() < 0.95:
        stage_id = random.choice(plan.stages_of(stage_id))
    fields = {
        "stage": stage_id,
        "micro_batch": micro_batch,
        "buffer": micro_batch % plan.num_buffers,
    }
    if symbol == "C":
        fields["peer_buffer"] = micro_batch % plan.num_buffers
    if symbol not in "LF":
        neighbours = (stage_id - 1, stage_id + 1, random.randrange(plan.stages))
        fields["peer"] = random.choice(neighbours)
    k = random.randrange(len(items))
    items.insert(k, (items[k][0], _made(symbol, fields)))


def _restep(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    """Let an instruction that begins a step end the step before, or the reverse."""
    k = random.randrange(len(items))
    before = items[k - 1][0] if k else 0
    after = items[k + 1][0] if k + 1 < len(items) else items[k][0]
    items[k] = (random.choice((before, after)), items[k][1])


def _group(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    """Enclose a few instructions in a group: mostly posts of one step, as it has to be."""
    posts = [k for k, (_, i) in enumerate(items) if i.op.startswith("Post")]
    careful = random.random() < 0.9
    if careful and not posts:
        return
    start = random.choice(posts) if careful else random.randrange(len(items))
    stop = start + 1
    while stop < len(items) and random.random() < 0.7:
        if careful and (stop not in posts or items[stop][0] != items[start][0]):
            break
        stop += 1
    items.insert(stop, (items[stop - 1][0], GroupEnd()))
    items.insert(start, (items[start][0], GroupStart()))


def _split(_: PipelinePlan, __: int, items: Flat, random: Random) -> None:
    """Replace a transfer by its post and its wait, which later changes may pull apart."""
    whole = [k for k, (_, i) in enumerate(items) if i.op in ("SendActivation", "RecvActivation")]
    if whole:
        k = random.choice(whole)
        step, instruction = items[k]
        post, wait = ("s>", "s.") if instruction.op == "SendActivation" else ("r<", "r.")
        fields = instruction.model_dump(exclude={"op"})
        items[k : k + 1] = [(step, _made(post, fields)), (step, _made(wait, fields))]


def _made(symbol: str, fields: dict[str, int]) -> StepInstruction:
    return cast(StepInstruction, SYMBOLS[symbol](**fields))


CHANGES = (
    *(_drop, _repeat, _retarget, _insert, _restep, _group),
    *(_swap, _split) * 2,
    *(_shift,) * 3,
)
"""What may become of the steps of a program; more often what may leave it sound."""
