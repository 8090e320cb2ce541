"""A reference executor: what the plan of a whole pipeline does on a transport.

It shares no code with the checker. Values are the formulas of how they came about, so every stage
knows exactly what it should have been given: the output of stage 1 for micro-batch 2 is
`f1(f0(x2))`. A failure is of the kind of the finding that a checker must have for it.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal

from schemas import Instruction, PipelinePlan, TransferInstruction, TransportModel
from tests.support.executor_network import End, Network

Kind = Literal["structure", "coverage", "channel", "buffer", "deadlock"]


class FailedError(Exception):
    """The execution got stuck, lost a value or computed a wrong one."""

    def __init__(self, kind: Kind, complaint: str) -> None:
        super().__init__(complaint)
        self.kind = kind


@dataclass
class Machine:
    """One rank: its program and the places of its stages' buffers."""

    plan: PipelinePlan
    rank: int
    network: Network
    instructions: list[tuple[int | None, Instruction]]
    """Each with its step, or `None` in the epilogue."""
    position: int = 0
    values: dict[tuple[int, int, str], str] = field(default_factory=dict)
    unread: set[tuple[int, int, str]] = field(default_factory=set)
    in_flight: set[tuple[int, int, str]] = field(default_factory=set)
    group: list[End] | None = None
    group_step: int | None = None
    posted: dict[tuple, End] = field(default_factory=dict)
    waits_for: End | None = None
    to_itself: bool = False
    enters: Instruction | None = None
    forwarded: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
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
                self.execute(*self.instructions[self.position])
            if self.waits_for is not None:
                if not self.waits_for.waited_for:
                    break
                self.complete(self.waits_for)
                self.waits_for = None
            if self.enters is None:
                self.position += 1
        return self.position > before

    def input_of(self, stage_id: int, micro_batch: int) -> str:
        """The input that a stage should have for a micro-batch."""
        value = f"x{micro_batch}"
        for stage in range(stage_id):
            value = f"f{stage}({value})"
        return value

    def place(self, instruction: Instruction, name: str) -> tuple[int, int, str]:
        in_range = 0 <= instruction.micro_batch < self.plan.micro_batches
        require(in_range, "structure", "no such micro-batch")
        require(0 <= instruction.buffer < self.plan.num_buffers, "structure", "no such buffer")
        require(instruction.stage in self.stages, "structure", "a stage of another rank")
        return instruction.stage, instruction.buffer, name

    def read(self, key: tuple[int, int, str], needed: str) -> str:
        require(key not in self.in_flight, "buffer", "a place in flight is read")
        found = self.values.get(key)
        require(found == needed, "buffer", f"{found} instead of {needed}")
        self.unread.discard(key)
        return self.values[key]

    def may_write(self, key: tuple[int, int, str]) -> None:
        require(key not in self.in_flight, "buffer", "a place in flight is written")
        require(key not in self.unread, "buffer", "a value is lost")

    def write(self, key: tuple[int, int, str], value: str) -> None:
        self.may_write(key)
        self.values[key] = value
        self.unread.add(key)

    def execute(self, step: int | None, i: Instruction) -> None:
        key = ("Send" in i.op, *i.model_dump(exclude={"op"}).values())
        if self.group is not None:
            grouped = i.op.startswith("Post") or i.op == "GroupEnd"
            require(grouped and step == self.group_step, "structure", "not a part of a group")
        match i.op:
            case "LoadMicroBatch":
                last = i.stage == self.plan.stages - 1
                require(i.stage == 0 or last, "structure", "nothing to load")
                if i.stage == 0:
                    self.write(self.place(i, "input"), f"x{i.micro_batch}")
                if last:
                    self.write(self.place(i, "label"), f"y{i.micro_batch}")
            case "ForwardPass":
                self.forward(i)
            case "CopyActivation":
                self.copy(i)
            case "SendActivation" | "RecvActivation":
                self.waits_for = self.end_of(i)
                self.network.issue([self.waits_for])
            case "PostSendActivation" | "PostRecvActivation":
                require(key not in self.posted, "channel", "posted twice")
                self.posted[key] = end = self.end_of(i)
                if self.group is None:
                    self.network.issue([end])
                else:
                    self.group.append(end)
            case "WaitSendActivation" | "WaitRecvActivation":
                require(key in self.posted, "channel", "nothing was posted")
                self.waits_for = self.posted.pop(key)
            case "GroupStart":
                self.group, self.group_step = [], step
            case "GroupEnd":
                require(self.group is not None, "structure", "no group has begun")
                self.network.issue(self.group)
                self.group = None
            case "ReduceLoss":
                require(self.last and self.loss is None, "structure", "no losses to reduce")
                self.loss = i.reduction
            case "AllReduceLoss":
                reduced = self.loss in ("avg", "sum", "mean_of_means") and not self.handed_out
                require(self.last and reduced, "structure", "no reduced loss to extend")
                self.loss = "over replicas"
            case "ComputeMetrics" | "AllReduceMetrics":
                fresh = not self.computed and not self.handed_out
                require(self.last and fresh, "structure", "no metrics to compute")
                self.computed = True
            case "BroadcastLoss":
                require(not self.handed_out, "structure", "the loss is broadcast again")
                self.enters, self.handed_out = i, True
            case "CollectLogits":
                require(self.last and not self.collected, "structure", "no logits to collect")
                self.collected = True
            case "MoveLogits" | "BroadcastLogits":
                require(not self.collected, "structure", "the logits are handed out again")
                require(i.source == self.plan.stages - 1, "structure", "no logits to hand out")
                if i.op == "MoveLogits":
                    ends = [self.rank_of(i.source), self.rank_of(i.destination)]
                    require(self.rank in ends, "structure", "a rank that takes no part")
                self.enters, self.collected = i, True
            case _:
                raise AssertionError(i)

    def rank_of(self, stage_id: int) -> int:
        """The rank of a stage; -1 if there is no such stage."""
        known = 0 <= stage_id < len(self.plan.placement)
        return self.plan.placement[stage_id] if known else -1

    def forward(self, i: Instruction) -> None:
        output = self.place(i, "output")
        value = self.read(self.place(i, "input"), self.input_of(i.stage, i.micro_batch))
        self.write(output, f"f{i.stage}({value})")
        if i.stage == self.plan.stages - 1:
            self.read(self.place(i, "label"), f"y{i.micro_batch}")
            self.unread.discard(output)
        self.forwarded[i.stage].append(i.micro_batch)

    def copy(self, i: Instruction) -> None:
        own = self.place(i, "input")
        require(i.peer == i.stage - 1, "structure", "not from the stage before")
        require(i.peer in self.stages, "structure", "from a stage of another rank")
        require(0 <= i.peer_buffer < self.plan.num_buffers, "structure", "no such buffer")
        needed = self.input_of(i.stage, i.micro_batch)
        self.write(own, self.read((i.peer, i.peer_buffer, "output"), needed))

    def end_of(self, i: TransferInstruction) -> End:
        """This rank's end of a transfer, whose place is in flight from now on."""
        sends = "Send" in i.op
        key = self.place(i, "output" if sends else "input")
        end = End(self.rank, self.rank_of(i.peer), i, key)
        self.to_itself |= end.rank == end.peer_rank
        if sends:
            needed = f"f{i.stage}({self.input_of(i.stage, i.micro_batch)})"
            end.payload = self.read(end.key, needed)
        else:
            self.may_write(end.key)
        self.in_flight.add(end.key)
        return end

    def complete(self, end: End) -> None:
        self.in_flight.discard(end.key)
        if not end.sends:
            stage_id, peer = end.instruction.stage, end.instruction.peer
            needed = self.input_of(stage_id, end.instruction.micro_batch)
            kind: Kind = "channel" if peer == stage_id - 1 else "structure"
            require(end.payload == needed, kind, f"received {end.payload} as {needed}")
            self.write(end.key, end.payload)


def require(condition: bool, kind: Kind, complaint: str) -> None:
    if not condition:
        raise FailedError(kind, complaint)


def execute(plan: PipelinePlan, transport: TransportModel | None = None) -> None:
    """Run all ranks to the end.

    Raises:
        FailedError: anything is stuck, lost or wrong.
    """
    transport = transport or TransportModel()
    network = Network(transport)
    programs = {program.rank: program for program in plan.programs}
    ranks = sorted(program.rank for program in plan.programs)
    every = list(range(plan.ranks))
    require(ranks == every, "structure", "not one program for each rank")
    placed = len(plan.placement) == plan.stages and sorted(set(plan.placement)) == every
    require(placed, "structure", "not a rank for each stage and a stage on each rank")
    machines = [
        Machine(plan, r, network, [(p.step, p.instruction) for p in programs[r].placed()])
        for r in ranks
    ]
    progress = True
    while progress:
        slowest = min(machine.step for machine in machines)
        barrier = slowest if transport.step_barrier else float("inf")
        progress = any([machine.advance(barrier) for machine in machines])  # noqa: C419 (every one)
        progress |= network.progress() or broadcast(machines)
    require(all(m.group is None for m in machines), "structure", "a group never ends")
    if not all(len(machine.instructions) == machine.position for machine in machines):
        raise FailedError("deadlock" if all_have_counterparts(plan) else "channel", "stuck")
    require(not any(network.boxes.values()), "channel", "a message is never received")
    for machine in machines:
        require(not machine.to_itself, "structure", "a transfer of a rank with itself")
        require(not machine.posted, "channel", "never waited for")
        require(not machine.unread, "buffer", "a value is lost")
        for stage_id in machine.stages:
            in_order = machine.forwarded[stage_id] == list(range(plan.micro_batches))
            require(in_order, "coverage", "not all forwarded in order")


def broadcast(machines: list[Machine]) -> bool:
    """Let the ranks of a collective leave it when all of them have entered."""
    for entered in [machine.enters for machine in machines if machine.enters is not None]:
        ids = range(len(machines))
        if entered.op == "MoveLogits":
            ids = sorted({machines[0].rank_of(s) for s in (entered.source, entered.destination)})
            require(len(ids) == 2 and ids[0] >= 0, "structure", "moved nowhere")
        members = [machines[rank] for rank in ids]
        if any(machine.enters != entered for machine in members):
            continue
        if entered.op == "BroadcastLoss":
            last = machines[0].plan.stages - 1
            require(entered.source == last, "structure", "broadcast without a loss")
            source = machines[machines[0].plan.placement[last]]
            require(source.loss is not None, "structure", "no loss to broadcast")
            for machine in members:
                machine.loss = source.loss
        for machine in members:
            machine.enters = None
            machine.position += 1
        return True
    return False


def all_have_counterparts(plan: PipelinePlan) -> bool:
    """Whether each send has a receive, and each collective all its ranks, in the same order."""

    def rank_of(stage_id: int) -> int:
        return dict(enumerate(plan.placement)).get(stage_id, -1)

    ends: Counter[tuple[int, int]] = Counter()
    entered: defaultdict[tuple[int, ...], dict[int, list[Instruction]]] = defaultdict(dict)
    for program in plan.programs:
        here = program.rank
        for i in [placed.instruction for placed in program.placed()]:
            if i.op in ("SendActivation", "PostSendActivation"):
                ends[here, rank_of(i.peer)] += 1
            elif i.op in ("RecvActivation", "PostRecvActivation"):
                ends[rank_of(i.peer), here] -= 1
            elif i.op in ("BroadcastLoss", "BroadcastLogits"):
                every = tuple(range(plan.ranks))
                entered[every].setdefault(here, []).append(i)
            elif i.op == "MoveLogits":
                both = tuple(sorted((rank_of(i.source), rank_of(i.destination))))
                if here in both:
                    entered[both].setdefault(here, []).append(i)
    meet = all(
        orders.get(rank) == next(iter(orders.values()))
        for ranks, orders in entered.items()
        for rank in ranks
        if rank >= 0  # others are a matter of structure
    )
    return meet and not any(ends.values())
