"""The instruction set: what a rank can be told to do.

One small frozen class per instruction, joined in one union that JSON tells apart by `op`. An
instruction names its stage (a rank may hold several) and its micro-batch as well as its buffer, so
that a plan can be read and verified alone; a transfer names its peer, which is a stage, so that
nothing has to assume who the neighbours are. Where stages are, only the plan's placement says.

The vocabulary is that of DeepSpeed's pipeline schedules (`deepspeed.runtime.pipe.schedule`).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Id
from schemas.instruction_set.effects import (
    INPUT,
    INPUT_ON_FIRST,
    LABEL_ON_LAST,
    OUTPUT,
    OUTPUT_OF_PEER,
    OUTPUT_ON_LAST,
    Access,
    BufferPlace,
    Direction,
    Effects,
    Phase,
    Position,
)
from schemas.instruction_set.epilogue import BaseInstruction, Epilogue


class BufferInstruction(BaseInstruction):
    """An instruction that works on one micro-batch in a buffer of a stage, as a part of a step."""

    stage: Id
    micro_batch: Id
    buffer: Id

    effects: ClassVar[Effects]

    def touches(self, accesses: tuple[Access, ...], stages: int) -> tuple[BufferPlace, ...]:
        """The places that `accesses`, of the instruction's effects, touch in a pipeline."""
        return tuple(
            self._touched(access) for access in accesses if access.on.includes(self.stage, stages)
        )

    def _touched(self, access: Access) -> BufferPlace:
        return BufferPlace(self.stage, self.buffer, access.place)

    def __str__(self) -> str:
        return f"{self.op}(micro_batch={self.micro_batch})"


class TransferInstruction(BufferInstruction):
    """A buffer instruction that moves an activation from or to the stage `peer`, on another rank.

    The two ranks' transfers in one direction match by order, whichever of their stages they name.
    """

    peer: Id

    direction: ClassVar[Direction]


class LoadMicroBatch(BufferInstruction):
    """Load inputs (on the first stage) and labels (on the last stage) into the buffer."""

    op: Literal["LoadMicroBatch"] = Field(default="LoadMicroBatch", repr=False)
    position = Position.FIRST_OR_LAST
    effects = Effects(writes=(INPUT_ON_FIRST, LABEL_ON_LAST))


class ForwardPass(BufferInstruction):
    """Run the stage module on the buffer's input; the result becomes the buffer's output.

    On the last stage, output and label also give the loss of the micro-batch, a result.
    """

    op: Literal["ForwardPass"] = Field(default="ForwardPass", repr=False)
    effects = Effects(reads=(INPUT, LABEL_ON_LAST), writes=(OUTPUT,), delivers=(OUTPUT_ON_LAST,))


class CopyActivation(BufferInstruction):
    """Hand the output of the stage `peer`, in its `peer_buffer`, to `stage` as the buffer's input.

    Both stages are on the rank that executes it, one after the other along the pipeline: it stands
    for a send and its receive, is complete when it returns, and needs no other rank.
    """

    op: Literal["CopyActivation"] = Field(default="CopyActivation", repr=False)
    peer: Id
    peer_buffer: Id
    position = Position.NOT_FIRST
    effects = Effects(reads=(OUTPUT_OF_PEER,), writes=(INPUT,))

    def _touched(self, access: Access) -> BufferPlace:
        if access.of_peer:
            return BufferPlace(self.peer, self.peer_buffer, access.place)
        return super()._touched(access)


class RecvActivation(TransferInstruction):
    """Receive the buffer's input from `peer`; done when it is there."""

    op: Literal["RecvActivation"] = Field(default="RecvActivation", repr=False)
    position = Position.NOT_FIRST
    direction = Direction.RECV
    effects = Effects(writes=(INPUT,))


class SendActivation(TransferInstruction):
    """Send the buffer's output to `peer`; done when the peer has taken it."""

    op: Literal["SendActivation"] = Field(default="SendActivation", repr=False)
    position = Position.NOT_LAST
    direction = Direction.SEND
    effects = Effects(reads=(OUTPUT,))


class PostRecvActivation(TransferInstruction):
    """Begin to receive the buffer's input from `peer`; the input is in flight until the wait."""

    op: Literal["PostRecvActivation"] = Field(default="PostRecvActivation", repr=False)
    position = Position.NOT_FIRST
    direction = Direction.RECV
    effects = Effects(writes=(INPUT,), phase=Phase.POST)


class WaitRecvActivation(TransferInstruction):
    """Wait until the receive posted for this micro-batch has filled the buffer's input."""

    op: Literal["WaitRecvActivation"] = Field(default="WaitRecvActivation", repr=False)
    position = Position.NOT_FIRST
    direction = Direction.RECV
    effects = Effects(writes=(INPUT,), phase=Phase.WAIT)


class PostSendActivation(TransferInstruction):
    """Begin to send the buffer's output to `peer`; the output is in flight until the wait."""

    op: Literal["PostSendActivation"] = Field(default="PostSendActivation", repr=False)
    position = Position.NOT_LAST
    direction = Direction.SEND
    effects = Effects(reads=(OUTPUT,), phase=Phase.POST)


class WaitSendActivation(TransferInstruction):
    """Wait until the send posted for this micro-batch has left the buffer's output."""

    op: Literal["WaitSendActivation"] = Field(default="WaitSendActivation", repr=False)
    position = Position.NOT_LAST
    direction = Direction.SEND
    effects = Effects(reads=(OUTPUT,), phase=Phase.WAIT)


class GroupInstruction(BaseInstruction):
    """A bracket around posts that enter the rank's queue together, as one entry.

    The members of a group progress independently of each other, whatever their order inside; the
    entry has ended when all of them have. It is what `ncclGroupStart` and `ncclGroupEnd` mean, and
    `torch.distributed.batch_isend_irecv`. A group lies within one step and holds only posts.
    """

    effects: ClassVar[Effects] = Effects()

    def __str__(self) -> str:
        return self.op


class GroupStart(GroupInstruction):
    """Hold the posts that follow back until the end of the group."""

    op: Literal["GroupStart"] = Field(default="GroupStart", repr=False)


class GroupEnd(GroupInstruction):
    """Post all transfers of the group at once."""

    op: Literal["GroupEnd"] = Field(default="GroupEnd", repr=False)


Transfer = (
    RecvActivation
    | SendActivation
    | PostRecvActivation
    | WaitRecvActivation
    | PostSendActivation
    | WaitSendActivation
)
Group = GroupStart | GroupEnd
StepInstruction = Annotated[
    LoadMicroBatch | ForwardPass | CopyActivation | Transfer | Group, Field(discriminator="op")
]
Instruction = LoadMicroBatch | ForwardPass | CopyActivation | Transfer | Group | Epilogue
