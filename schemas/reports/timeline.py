"""When the instructions of a plan start and end, and how plans compare."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, overload

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from schemas.base import Frozen
from schemas.costs import Costs
from schemas.display import Displayed
from schemas.instruction_set.instructions import Instruction
from schemas.plans import Placed
from schemas.transport import TransportModel


class Span(Frozen):
    """When one instruction ran, in seconds since the start of the plan.

    The span of a post lasts from the post to the end of its transfer, and that of a `GroupEnd` to
    the end of the last transfer of its group; the rank goes on at their starts.
    """

    step: int | None
    instruction: Instruction = Field(discriminator="op")
    start: float
    end: float

    @model_validator(mode="after")
    def _forward_in_time(self) -> "Span":
        assert self.start <= self.end
        return self


class Spans(Sequence[Span]):
    """The spans of one program in its order, each made when it is asked for.

    A plan of 1,024 micro-batches on 64 ranks has 330,000 instructions, and who draws a picture of
    them, or asks for the makespan, needs no object for each.
    """

    def __init__(
        self,
        placed: Callable[[], Iterable[Placed]],
        starts: Sequence[float],
        ends: Sequence[float],
    ) -> None:
        """The spans of instructions that start and end then.

        Args:
            placed: All instructions in order; called whenever spans are asked for.
            starts: Seconds, of each.
            ends: Seconds, of each.
        """
        self._placed, self.starts, self.ends = placed, starts, ends

    @classmethod
    def of(cls, spans: Sequence[Span]) -> "Spans":
        """Spans that are there already."""
        placed = [Placed(n, span.step, span.instruction) for n, span in enumerate(spans)]
        return cls(lambda: placed, [span.start for span in spans], [span.end for span in spans])

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Span]:
        for placed, start, end in zip(self._placed(), self.starts, self.ends, strict=True):
            yield _span(placed, start, end)

    @overload
    def __getitem__(self, index: int) -> Span: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Span, ...]: ...

    def __getitem__(self, index: int | slice) -> Span | tuple[Span, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        return _span(self._known[index], self.starts[index], self.ends[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Spans.of, (tuple(self),)

    @cached_property
    def _known(self) -> tuple[Placed, ...]:
        return tuple(self._placed())

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """In JSON, a list of spans."""
        listed = handler(tuple[Span, ...])
        return core_schema.json_or_python_schema(
            json_schema=core_schema.no_info_after_validator_function(cls.of, listed),
            python_schema=core_schema.union_schema(
                [
                    core_schema.is_instance_schema(cls),
                    core_schema.no_info_after_validator_function(cls.of, listed),
                ]
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(
                tuple, return_schema=listed
            ),
        )


def _span(placed: Placed, start: float, end: float) -> Span:
    return Span.model_construct(
        step=placed.step, instruction=placed.instruction, start=start, end=end
    )


class StageTimeline(Frozen):
    """One rank's part of a timeline."""

    stage_id: int | None
    """The rank's stage; `None` where ranks and stages are not the same."""
    rank: int
    spans: Spans
    busy: float
    """Seconds in forwards."""
    idle: float
    """Seconds of the makespan without a forward."""
    peak_bytes: int
    """The most bytes of received and not yet sent activations held at once."""


class Timeline(Frozen, Displayed):
    """Start and end of every instruction of a plan under given costs."""

    costs: Costs
    makespan: float
    """Seconds from the first start to the last end."""
    bubble: float
    """The fraction of the ranks' time that is idle."""
    ideal: float
    """What no plan with this placement can be faster than: of the slowest rank, the stages before
    its first, its own forwards of all micro-batches, and the stages behind its last. With equal
    stages and one on each rank, `(M + S - 1)` forwards. Where micro-batches differ, the forwards of
    the first one count before a rank, and those of the last one behind it."""
    ideal_bubble: float
    """The bubble of equal stages without transfers: `(S - 1) / (M + S - 1)` with one a rank."""
    stages: tuple[StageTimeline, ...]


class ComparedSchedule(Frozen):
    """One schedule's figures for M micro-batches, S stages and R ranks."""

    name: str
    steps: int
    buffers: str
    """Buffers of a stage, from the first stage to the last."""
    ideal_bubble: float
    """Idle fraction with equal stages, without transfers."""
    makespan: float | None
    """Seconds, simulated; `None` for a schedule that is not compiled here."""
    bubble: float | None
    """Idle fraction, simulated."""


class Comparison(Frozen):
    """Schedules side by side, as `schedcc compare --json` prints them."""

    format: Literal["schedcc.comparison/1"] = "schedcc.comparison/1"
    micro_batches: int
    stages: int
    ranks: int
    schedule: str
    costs: Costs
    transport: TransportModel
    schedules: tuple[ComparedSchedule, ...]
