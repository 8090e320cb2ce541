"""One rank of the reference executor: its program, and the places of its stages' buffers."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal, assert_never, get_args

from schedcc.testing.network import End, Network, PlaceKey
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    BufferInstruction,
    CollectLogits,
    ComputeMetrics,
    CopyActivation,
    EpilogueInstruction,
    ForwardPass,
    GroupEnd,
    GroupStart,
    Instruction,
    LoadMicroBatch,
    MoveLogits,
    PipelinePlan,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    ReduceLoss,
    ReduceOutput,
    SendActivation,
    TransferInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)

Kind = Literal["structure", "coverage", "channel", "buffer", "deadlock"]


class FailedError(Exception):
    """The execution got stuck, lost a value or computed a wrong one."""

    def __init__(self, kind: Kind, complaint: str) -> None:
        super().__init__(complaint)
        self.kind = kind
        """The code of the finding that a checker must have for it."""


def require(condition: bool, kind: Kind, complaint: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        raise FailedError(kind, complaint)


@dataclass
class Machine:
    """One rank: its program and the places of its stages' buffers."""

    plan: PipelinePlan
    rank: int
    network: Network
    instructions: list[tuple[int | None, Instruction]]
    """Each with its step, or `None` in the epilogue."""
    position: int = 0
    values: dict[PlaceKey, str] = field(default_factory=dict)
    unread: set[PlaceKey] = field(default_factory=set)
    in_flight: set[PlaceKey] = field(default_factory=set)
    group: list[End] | None = None
    group_step: int | None = None
    posted: dict[tuple[object, ...], End] = field(default_factory=dict)
    waits_for: End | None = None
    to_itself: bool = False
    """Whether a transfer went to the rank that it came from."""
    enters: BroadcastLoss | BroadcastLogits | MoveLogits | None = None
    """The collective in which the rank is."""
    forwarded: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """The micro-batches that each stage has forwarded."""
    collected: bool = False
    computed: bool = False
    handed_out: bool = False
    loss: str | None = None

    @property
    def stages(self) -> list[int]:
        """The stages that the rank holds."""
        return [s for s, rank in enumerate(self.plan.placement) if rank == self.rank]

    @property
    def last(self) -> bool:
        """Whether the last stage is here."""
        return self.plan.stages - 1 in self.stages

    @property
    def step(self) -> float:
        """The step of the next instruction; the epilogue comes after all steps."""
        if self.position == len(self.instructions):
            return float("inf")
        step, _ = self.instructions[self.position]
        return float("inf") if step is None else step

    def advance(self, barrier: float) -> bool:
        """Execute until something has to be waited for; tell whether anything happened.

        Args:
            barrier: The last step that may begin.
        """
        before = self.position
        while self.position < len(self.instructions) and self.enters is None:
            if self.waits_for is None:
                if self.step > barrier:
                    break
                self._execute(*self.instructions[self.position])
            if self.waits_for is not None:
                if not self.waits_for.waited_for:
                    break
                self._complete(self.waits_for)
                self.waits_for = None
            if self.enters is None:
                self.position += 1
        return self.position > before

    def rank_of(self, stage_id: int) -> int:
        """The rank of a stage; -1 if there is no such stage."""
        known = 0 <= stage_id < len(self.plan.placement)
        return self.plan.placement[stage_id] if known else -1

    def _execute(self, step: int | None, i: Instruction) -> None:
        if self.group is not None:
            grouped = isinstance(i, PostSendActivation | PostRecvActivation | GroupEnd)
            require(grouped and step == self.group_step, "structure", "not a part of a group")
        match i:
            case LoadMicroBatch():
                self._load(i)
            case ForwardPass():
                self._forward(i)
            case CopyActivation():
                self._copy(i)
            case SendActivation() | RecvActivation():
                self.waits_for = self._end_of(i)
                self.network.issue([self.waits_for])
            case PostSendActivation() | PostRecvActivation():
                self._post(i)
            case WaitSendActivation() | WaitRecvActivation():
                require(_key(i) in self.posted, "channel", "nothing was posted")
                self.waits_for = self.posted.pop(_key(i))
            case GroupStart():
                self.group, self.group_step = [], step
            case GroupEnd():
                require(self.group is not None, "structure", "no group has begun")
                self.network.issue(self.group or [])
                self.group = None
            case _:
                self._finish(i)

    def _finish(self, i: EpilogueInstruction) -> None:
        """Execute an instruction of the epilogue."""
        match i:
            case ReduceLoss():
                require(self.last and self.loss is None, "structure", "no losses to reduce")
                self.loss = i.reduction
            case AllReduceLoss():
                reduced = self.loss in get_args(ReduceOutput) and not self.handed_out
                require(self.last and reduced, "structure", "no reduced loss to extend")
                self.loss = "over replicas"
            case ComputeMetrics() | AllReduceMetrics():
                fresh = not self.computed and not self.handed_out
                require(self.last and fresh, "structure", "no metrics to compute")
                self.computed = True
            case BroadcastLoss():
                require(not self.handed_out, "structure", "the loss is broadcast again")
                self.enters, self.handed_out = i, True
            case CollectLogits():
                require(self.last and not self.collected, "structure", "no logits to collect")
                self.collected = True
            case MoveLogits() | BroadcastLogits():
                require(not self.collected, "structure", "the logits are handed out again")
                require(i.source == self.plan.stages - 1, "structure", "no logits to hand out")
                if isinstance(i, MoveLogits):
                    ends = [self.rank_of(i.source), self.rank_of(i.destination)]
                    require(self.rank in ends, "structure", "a rank that takes no part")
                self.enters, self.collected = i, True
            case _:
                assert_never(i)

    def _input_of(self, stage_id: int, micro_batch: int) -> str:
        """The input that a stage should have for a micro-batch."""
        value = f"x{micro_batch}"
        for stage in range(stage_id):
            value = f"f{stage}({value})"
        return value

    def _place(self, instruction: BufferInstruction, name: str) -> PlaceKey:
        in_range = 0 <= instruction.micro_batch < self.plan.micro_batches
        require(in_range, "structure", "no such micro-batch")
        require(0 <= instruction.buffer < self.plan.num_buffers, "structure", "no such buffer")
        require(instruction.stage in self.stages, "structure", "a stage of another rank")
        return instruction.stage, instruction.buffer, name

    def _read(self, key: PlaceKey, needed: str) -> str:
        require(key not in self.in_flight, "buffer", "a place in flight is read")
        found = self.values.get(key)
        require(found == needed, "buffer", f"{found} instead of {needed}")
        self.unread.discard(key)
        return self.values[key]

    def _may_write(self, key: PlaceKey) -> None:
        require(key not in self.in_flight, "buffer", "a place in flight is written")
        require(key not in self.unread, "buffer", "a value is lost")

    def _write(self, key: PlaceKey, value: str) -> None:
        self._may_write(key)
        self.values[key] = value
        self.unread.add(key)

    def _load(self, i: LoadMicroBatch) -> None:
        last = i.stage == self.plan.stages - 1
        require(i.stage == 0 or last, "structure", "nothing to load")
        if i.stage == 0:
            self._write(self._place(i, "input"), f"x{i.micro_batch}")
        if last:
            self._write(self._place(i, "label"), f"y{i.micro_batch}")

    def _forward(self, i: ForwardPass) -> None:
        output = self._place(i, "output")
        value = self._read(self._place(i, "input"), self._input_of(i.stage, i.micro_batch))
        self._write(output, f"f{i.stage}({value})")
        if i.stage == self.plan.stages - 1:
            self._read(self._place(i, "label"), f"y{i.micro_batch}")
            self.unread.discard(output)
        self.forwarded[i.stage].append(i.micro_batch)

    def _copy(self, i: CopyActivation) -> None:
        own = self._place(i, "input")
        require(i.peer == i.stage - 1, "structure", "not from the stage before")
        require(i.peer in self.stages, "structure", "from a stage of another rank")
        require(0 <= i.peer_buffer < self.plan.num_buffers, "structure", "no such buffer")
        needed = self._input_of(i.stage, i.micro_batch)
        self._write(own, self._read((i.peer, i.peer_buffer, "output"), needed))

    def _post(self, i: TransferInstruction) -> None:
        require(_key(i) not in self.posted, "channel", "posted twice")
        self.posted[_key(i)] = end = self._end_of(i)
        if self.group is None:
            self.network.issue([end])
        else:
            self.group.append(end)

    def _end_of(self, i: TransferInstruction) -> End:
        """This rank's end of a transfer, whose place is in flight from now on."""
        sends = "Send" in i.op
        key = self._place(i, "output" if sends else "input")
        end = End(self.rank, self.rank_of(i.peer), i, key)
        self.to_itself |= end.rank == end.peer_rank
        if sends:
            needed = f"f{i.stage}({self._input_of(i.stage, i.micro_batch)})"
            end.payload = self._read(end.key, needed)
        else:
            self._may_write(end.key)
        self.in_flight.add(end.key)
        return end

    def _complete(self, end: End) -> None:
        self.in_flight.discard(end.key)
        stage_id, peer = end.instruction.stage, end.instruction.peer
        is_neighbour = peer == stage_id + (1 if end.sends else -1)
        if not end.sends:
            needed = self._input_of(stage_id, end.instruction.micro_batch)
            kind: Kind = "channel" if is_neighbour else "structure"
            require(end.payload == needed, kind, f"received {end.payload} as {needed}")
            self._write(end.key, end.payload)
        # A right value from the right rank, by an instruction that names another stage of it.
        require(is_neighbour, "structure", f"stage {stage_id} exchanges with stage {peer}")


def _key(i: TransferInstruction) -> tuple[object, ...]:
    return "Send" in i.op, i.stage, i.micro_batch, i.buffer, i.peer
