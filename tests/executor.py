"""A reference executor: what the plan of a whole pipeline does on the strictest transport.

It shares no code with the checker. Values are the formulas of how they came about, so a stage
knows exactly what it should have been given: the output of stage 1 for micro-batch 2 is
`f1(f0(x2))`. Each stage has one in-order queue of transfers; the heads of two queues meet, or wait.
"""

from dataclasses import dataclass, field
from itertools import permutations

from schemas import Instruction, PipelinePlan, TransferInstruction


class FailedError(Exception):
    """The execution got stuck, lost a value or computed a wrong one."""


@dataclass
class Transfer:
    """One end of a transfer in its stage's queue."""

    instruction: TransferInstruction
    key: tuple[int, str]
    sends: bool
    payload: str = ""
    done: bool = False


@dataclass
class Machine:
    """One stage: its program, the places of its buffers, and its queue."""

    plan: PipelinePlan
    stage_id: int
    instructions: list[Instruction]
    position: int = 0
    values: dict[tuple[int, str], str] = field(default_factory=dict)
    unread: set[tuple[int, str]] = field(default_factory=set)
    in_flight: set[tuple[int, str]] = field(default_factory=set)
    queue: list[Transfer] = field(default_factory=list)
    posted: dict[tuple, Transfer] = field(default_factory=dict)
    waits_for: Transfer | None = None
    enters: Instruction | None = None
    forwarded: list[int] = field(default_factory=list)
    collected: bool = False
    computed: bool = False
    handed_out: bool = False
    loss: str | None = None

    @property
    def last(self) -> bool:
        return self.stage_id == self.plan.stages - 1

    def advance(self) -> bool:
        """Execute until something has to be waited for; tell whether anything happened."""
        before = self.position
        while self.position < len(self.instructions) and self.enters is None:
            if self.waits_for is None:
                self.execute(self.instructions[self.position])
            if self.waits_for is not None:
                if not self.waits_for.done:
                    break
                self.complete(self.waits_for)
                self.waits_for = None
            if self.enters is None:
                self.position += 1
        return self.position > before

    def input_of(self, micro_batch: int) -> str:
        """The input that this stage should have for a micro-batch."""
        value = f"x{micro_batch}"
        for stage in range(self.stage_id):
            value = f"f{stage}({value})"
        return value

    def place(self, instruction: Instruction, name: str) -> tuple[int, str]:
        require(0 <= instruction.micro_batch < self.plan.micro_batches, "no such micro-batch")
        require(0 <= instruction.buffer < self.plan.num_buffers, "no such buffer")
        return instruction.buffer, name

    def read(self, key: tuple[int, str], needed: str) -> str:
        require(key not in self.in_flight, "a place in flight is read")
        require(self.values.get(key) == needed, f"{self.values.get(key)} instead of {needed}")
        self.unread.discard(key)
        return self.values[key]

    def may_write(self, key: tuple[int, str]) -> None:
        require(key not in self.in_flight, "a place in flight is written")
        require(key not in self.unread, "a value is lost")

    def write(self, key: tuple[int, str], value: str) -> None:
        self.may_write(key)
        self.values[key] = value
        self.unread.add(key)

    def execute(self, i: Instruction) -> None:
        key = ("Send" in i.op, *i.model_dump(exclude={"op"}).values())
        match i.op:
            case "LoadMicroBatch":
                require(self.stage_id == 0 or self.last, "nothing to load")
                if self.stage_id == 0:
                    self.write(self.place(i, "input"), f"x{i.micro_batch}")
                if self.last:
                    self.write(self.place(i, "label"), f"y{i.micro_batch}")
            case "ForwardPass":
                self.forward(i)
            case "SendActivation" | "RecvActivation":
                self.waits_for = self.issue(i)
            case "PostSendActivation" | "PostRecvActivation":
                require(key not in self.posted, "posted twice")
                self.posted[key] = self.issue(i)
            case "WaitSendActivation" | "WaitRecvActivation":
                require(key in self.posted, "nothing was posted")
                self.waits_for = self.posted.pop(key)
            case "ReduceLoss":
                require(self.last and self.loss is None, "no losses to reduce")
                self.loss = i.reduction
            case "AllReduceLoss":
                reduced = self.loss in ("avg", "sum", "mean_of_means") and not self.handed_out
                require(self.last and reduced, "no reduced loss to extend")
                self.loss = "over replicas"
            case "ComputeMetrics" | "AllReduceMetrics":
                fresh = not self.computed and not self.handed_out
                require(self.last and fresh, "no metrics to compute")
                self.computed = True
            case "BroadcastLoss":
                require(not self.handed_out, "the loss is broadcast again")
                self.enters, self.handed_out = i, True
            case "CollectLogits":
                require(self.last and not self.collected, "no logits to collect")
                self.collected = True
            case "MoveLogits" | "BroadcastLogits":
                require(not self.collected, "the logits are handed out again")
                require(i.source == self.plan.stages - 1, "no logits to hand out")
                self.enters, self.collected = i, True
            case _:
                raise AssertionError(i)

    def forward(self, i: Instruction) -> None:
        output = self.place(i, "output")
        value = self.read(self.place(i, "input"), self.input_of(i.micro_batch))
        self.write(output, f"f{self.stage_id}({value})")
        if self.last:
            self.read(self.place(i, "label"), f"y{i.micro_batch}")
            self.unread.discard(output)
        self.forwarded.append(i.micro_batch)

    def issue(self, i: TransferInstruction) -> Transfer:
        sends = "Send" in i.op
        transfer = Transfer(i, self.place(i, "output" if sends else "input"), sends)
        if sends:
            needed = f"f{self.stage_id}({self.input_of(i.micro_batch)})"
            transfer.payload = self.read(transfer.key, needed)
        else:
            self.may_write(transfer.key)
        self.in_flight.add(transfer.key)
        self.queue.append(transfer)
        return transfer

    def complete(self, transfer: Transfer) -> None:
        self.in_flight.discard(transfer.key)
        if not transfer.sends:
            needed = self.input_of(transfer.instruction.micro_batch)
            require(transfer.payload == needed, f"received {transfer.payload} as {needed}")
            self.write(transfer.key, transfer.payload)


def require(condition: bool, complaint: str) -> None:
    if not condition:
        raise FailedError(complaint)


def execute(plan: PipelinePlan) -> None:
    """Run all stages to the end. Raises `FailedError` if anything is stuck, lost or wrong."""
    programs = {p.stage_id: [placed.instruction for placed in p.placed()] for p in plan.programs}
    stages = sorted(program.stage_id for program in plan.programs)
    require(stages == list(range(plan.stages)), "not one program for each stage")
    machines = [Machine(plan, stage_id, programs[stage_id]) for stage_id in stages]
    progress = True
    while progress:
        progress = any([machine.advance() for machine in machines])  # noqa: C419 (every one)
        progress |= exchange(machines) or broadcast(machines)
    require(all(len(m.instructions) == m.position for m in machines), "stuck")
    for machine in machines:
        require(not machine.posted, "never waited for")
        require(not machine.unread, "a value is lost")
        require(machine.forwarded == list(range(plan.micro_batches)), "not all forwarded in order")


def exchange(machines: list[Machine]) -> bool:
    """Let the heads of two queues meet that are the two ends of one transfer."""
    heads = [(machine, machine.queue[0]) for machine in machines if machine.queue]
    for (source, send), (target, receive) in permutations(heads, 2):
        peers = (receive.instruction.peer, send.instruction.peer)
        if send.sends and not receive.sends and peers == (source.stage_id, target.stage_id):
            receive.payload = send.payload
            send.done = receive.done = True
            del source.queue[0], target.queue[0]
            return True
    return False


def broadcast(machines: list[Machine]) -> bool:
    """Let the stages of a collective leave it when all of them have entered."""
    for entered in [machine.enters for machine in machines if machine.enters is not None]:
        ids = range(len(machines))
        if entered.op == "MoveLogits":
            ids = sorted({entered.source, entered.destination})
            require(len(ids) == 2 and set(ids) <= set(range(len(machines))), "moved nowhere")
        members = [machines[stage_id] for stage_id in ids]
        if any(machine.enters != entered for machine in members):
            continue
        if entered.op == "BroadcastLoss":
            source = machines[-1]
            require(entered.source == source.stage_id, "broadcast without a loss")
            require(source.loss is not None, "no loss to broadcast")
            for machine in members:
                machine.loss = source.loss
        for machine in members:
            machine.enters = None
            machine.position += 1
        return True
    return False
