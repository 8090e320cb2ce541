"""What a schedule is: a placement, and at which step each stage forwards each micro-batch.

Nothing else is written by hand: `schedcc.derive` finds loads, transfers, their order, and buffers.
A schedule of one's own is a value with a name and two methods::

    class Looped:
        name = "looped"

        def placement(self, stages, ranks):
            return [stage % ranks for stage in range(stages)]

        def forwards(self, micro_batches, stages, ranks):
            for stage in range(stages):
                lap, rank = divmod(stage, ranks)
                for m in range(micro_batches):
                    yield lap * max(micro_batches, ranks) + rank + m, stage, m

    schedcc.compile_pipeline(8, 4, schedule=Looped(), ranks=2)
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from schedcc.errors import ScheduleError

Overlap: TypeAlias = bool | Literal["channel"]
"""Whether transfers cross the forwards. `True`: in an order that is sound on one queue for each
rank. `"channel"`: in one that needs a queue for each channel (`TransportModel.queue`); it differs
only where channels lead around in a circle, and posts transfers earlier there."""


class Period(NamedTuple):
    """After how many micro-batches a schedule repeats, and how many steps later."""

    micro_batches: int
    steps: int


@runtime_checkable
class Schedule(Protocol):
    """A placement, and which stage forwards which micro-batch at which step.

    It may promise that it repeats, by a further method `period(stages, ranks) -> Period`: that
    micro-batch `m + period.micro_batches` is forwarded `period.steps` steps later than `m`, on
    every stage and whatever M is. Then plans of any length are checked in the time of a short one.
    """

    @property
    def name(self) -> str:
        """What plans call it."""

    def placement(self, stages: int, ranks: int) -> Sequence[int]:
        """`[stages]`: the rank of each stage.

        Raises:
            ScheduleError: the schedule does not exist for so many stages and ranks.
        """

    def forwards(self, micro_batches: int, stages: int, ranks: int) -> Iterable[Any]:
        """`(step, stage, micro_batch)` for every stage and micro-batch, in any order.

        Either one by one or as an array `[stages * micro_batches, 3]` of integers. A rank forwards
        one micro-batch in a step, the stages of a micro-batch are in different steps in their
        order, and so are the micro-batches of a stage.
        """


def first_allowed(schedule: Schedule, ranks: int, numbers: Iterable[int]) -> int:
    """S, with the first of `numbers` of stages on each rank that a schedule allows.

    Raises:
        ScheduleError: what it says to the first, if it allows none.
    """
    refusals: list[str] = []  # an error would keep its frames, and so whoever called this
    for each in numbers:
        try:
            schedule.placement(each * ranks, ranks)
        except ScheduleError as error:
            refusals.append(str(error))
        else:
            return each * ranks
    raise ScheduleError(refusals[0])


def require_stages(name: str, stages: int, ranks: int, *, each: int | None = None) -> None:
    """Refuse numbers of stages and ranks that do not divide as a schedule needs.

    Args:
        name: Of the schedule.
        stages: S.
        ranks: R.
        each: The stages that every rank holds; `None`: any number.

    Raises:
        ScheduleError: S is not `each` R, or no multiple of R.
    """
    if stages != ranks * each if each else stages % ranks:
        number = {1: "one stage", 2: "two stages", None: "the same number of stages"}[each]
        raise ScheduleError(
            f"{name} needs {number} on each rank, found {stages} stages on {ranks} ranks"
        )
