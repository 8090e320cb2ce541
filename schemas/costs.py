"""What things cost in time: the assumptions of a simulation."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from schemas.base import Frozen, Size

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _number_or_list(value: object) -> str:
    return "(list)" if isinstance(value, list | tuple) else "(number)"


SecondsOfEach = Annotated[
    Annotated[Seconds, Tag("(number)")] | Annotated[tuple[Seconds, ...], Tag("(list)")],
    Discriminator(_number_or_list),
]
"""One number for all, or one for each; tags in brackets are no part of a place in a message."""


class SingleCost(Frozen):
    """How long one micro-batch takes, where it takes another time than the others."""

    of: Literal["forward", "transfer", "load"]
    micro_batch: Size
    stage_id: Size | None = None
    """The stage that forwards, sends or loads it; `None`: every stage that does."""
    seconds: Seconds


class Costs(Frozen):
    """How long things take, in seconds; what is not named takes no time.

    A transfer takes `transfer` seconds, plus `activation_bytes / bandwidth` where a bandwidth is
    given: a constant, or the usual latency and bandwidth model.
    """

    forward: SecondsOfEach = 1.0
    """Of one micro-batch: on every stage, or on each."""
    transfer: SecondsOfEach = 0.0
    """Of one activation, or the latency of its transfer: at every boundary between two stages, or
    at each, from that of stages 0 and 1 on. A copy between two stages of one rank takes none."""
    activation_bytes: int = Field(default=0, ge=0, lt=2**63)
    """Size of one activation."""
    bandwidth: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bytes per second between neighbours; `None`: without limit."""
    load: Seconds = 0.0
    """Of the inputs or the labels of one micro-batch, on the first and on the last stage."""
    collective: Seconds = 0.0
    """Of one instruction that several ranks execute together, once all have entered it."""
    single: tuple[SingleCost, ...] = ()
    """Micro-batches that take another time than the others, such as a shorter last one. Of several
    for the same, the last one counts."""

    @property
    def transfer_seconds(self) -> float | tuple[float, ...]:
        """Time of one transfer, once both sides are ready; at every boundary, or at each."""
        moved = self.activation_bytes / self.bandwidth if self.bandwidth else 0.0
        if isinstance(self.transfer, tuple):
            return tuple(latency + moved for latency in self.transfer)
        return self.transfer + moved

    def forward_seconds(self, stages: int) -> tuple[float, ...]:
        """Time of a forward on each of `stages` stages.

        Raises:
            ValueError: there are costs for another number of stages.
        """
        return _for_each("forward", self.forward, stages, f"stages={stages}")

    def boundary_seconds(self, stages: int) -> tuple[float, ...]:
        """Time of a transfer at each of the `stages - 1` boundaries, once both sides are ready.

        Raises:
            ValueError: there are costs for another number of boundaries.
        """
        boundaries = f"boundaries={stages - 1}, stages={stages}"
        return _for_each("transfer", self.transfer_seconds, stages - 1, boundaries)


def _for_each(
    name: str, seconds: float | tuple[float, ...], number: int, what: str
) -> tuple[float, ...]:
    if not isinstance(seconds, tuple):
        return (seconds,) * number
    if len(seconds) != number:
        raise ValueError(
            f"{name} lists {len(seconds)} costs, needed a single number or a list of "
            f"{number} ({what})"
        )
    return seconds
