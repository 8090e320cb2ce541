"""Where the time of a run went, as `schedcc breakdown --json` prints it. All times are seconds."""

from typing import Literal

from schemas.base import Frozen


class StageSeconds(Frozen):
    """What a stage's rank spent on it."""

    stage_id: int
    forward: float
    """In forwards."""
    data: float
    """Waiting for the inputs or the labels of a micro-batch (`LoadMicroBatch`)."""
    receive: float
    """Waiting for an activation of the stage before; the time of its transfer included."""
    send: float
    """Waiting until the stage behind has taken an activation."""

    @property
    def work(self) -> float:
        """What no other order of the instructions would save: forwards and loads."""
        return self.forward + self.data


class RankSeconds(Frozen):
    """What a rank spent; stages, `other` and `idle` together are all of its time."""

    rank: int
    stages: tuple[StageSeconds, ...]
    other: float
    """In copies between its own stages, brackets of groups, and the epilogue."""
    idle: float
    """In no instruction."""

    @property
    def work(self) -> float:
        """Of all its stages."""
        return sum(stage.work for stage in self.stages)


class Breakdown(Frozen):
    """Where the time of every rank of a pipeline went, and who holds the others up."""

    seconds: float
    """From the first start to the last end."""
    ranks: tuple[RankSeconds, ...]
    bottleneck: int | None
    """The stage with the most work on the rank with the most work; of equal ones, the first. No
    order of the same work is faster than that rank. `None`: nobody has any."""


class Breakdowns(Frozen):
    """The breakdowns of all pipelines of a recording, or the one of a simulation."""

    format: Literal["schedcc.breakdown/1"] = "schedcc.breakdown/1"
    pipelines: dict[str, Breakdown]
    """By name."""
