"""Plans that all stages have compiled, checked and compared, ready to be executed."""

from collections import OrderedDict
from dataclasses import dataclass

import schedcc
from runtime.distributed.agreement import require_same
from runtime.execution.buffers import BufferPool
from runtime.execution.interpreter import Interpreter
from runtime.modules.division import Division
from runtime.transport.protocol import PeerChannel, Transport
from schemas import Direction, MoveLogits, StagePlan, TransferInstruction

PLANS = 16
"""Plans that are remembered; all stages forget the same ones."""


@dataclass(frozen=True)
class Build:
    """What has to be the same on all stages for a plan to mean the same on all of them."""

    version: str
    division: Division
    micro_batches: int
    fingerprint: str
    opens: frozenset[PeerChannel] = frozenset()
    """What the stage has not used before; these may differ."""


class PlanCache:
    """One stage's plans, by number of micro-batches, wanted outcome and variant."""

    def __init__(
        self,
        transport: Transport,
        division: Division,
        buffers: BufferPool,
    ) -> None:
        """Compile plans for the stages of `transport`, which hold layers by `division`.

        Args:
            transport: Connection to the other stages.
            division: How the layers are divided into stages.
            buffers: Where the plans of this stage are executed.
        """
        self._transport, self._division, self._buffers = transport, division, buffers
        self._known: OrderedDict[tuple[int, schedcc.Outcome, bool], Interpreter] = OrderedDict()
        self._connected: set[PeerChannel] = set()

    def connect(self) -> None:
        """Make sure of the schedule's channels before anything else uses them.

        Raises:
            AgreementError: the stages' builds or partitions differ.
        """
        if not self._connected and self._transport.stages > 1:
            self.interpreter(1, schedcc.Outcome(compute_loss=False), overlap=True)

    def interpreter(
        self, micro_batches: int, outcome: schedcc.Outcome, *, overlap: bool
    ) -> Interpreter:
        """What executes this stage's plan; all stages have to ask for the same at the same time.

        A new plan is compiled with its checks, compared with that of the other stages, and the
        channels that it uses are warmed up. The plans that were asked for last are remembered.

        Raises:
            AgreementError: the stages' plans differ, or what the plans are for.
        """
        key = (micro_batches, outcome, overlap)
        if key not in self._known:
            stages = self._transport.stages
            pipeline = (
                schedcc.compile_pipeline(micro_batches, stages, overlap=overlap, outcome=outcome)
                if micro_batches
                else schedcc.compile_epilogue(stages, outcome=outcome)
            )
            plan = pipeline.stage(self._transport.stage_id)
            opens = _channels(plan) - self._connected
            build = Build(
                schedcc.__version__, self._division, micro_batches, pipeline.fingerprint, opens
            )
            if self._compare(build):
                self._open(opens)
            self._known[key] = Interpreter(plan, self._transport, self._buffers)
            if len(self._known) > PLANS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def clear(self) -> None:
        """Let go of all plans."""
        self._known.clear()

    def _compare(self, build: Build) -> bool:
        """Require equal builds; whether any stage has channels to open, for which all are needed.

        Replicas run plans of other lengths, but open the same channels at the same time: these
        follow from the outcome alone.
        """
        builds: list[Build] = self._transport.gather_objects(build)
        require_same("version of schedcc", [build.version for build in builds])
        require_same("partition of the layers", [build.division for build in builds])
        require_same("number of micro-batches", [build.micro_batches for build in builds])
        require_same("fingerprint of the plan", [build.fingerprint for build in builds])
        return any(build.opens for build in builds)

    def _open(self, channels: frozenset[PeerChannel]) -> None:
        """Warm up the channels that no plan has used before."""
        self._transport.connect(
            receives_from=sorted(peer for way, peer in channels if way is Direction.RECV),
            sends_to=sorted(peer for way, peer in channels if way is Direction.SEND),
        )
        self._connected |= channels


def _channels(plan: StagePlan) -> frozenset[PeerChannel]:
    """The channels that a plan uses, in its epilogue as well."""
    channels: set[PeerChannel] = set()
    for placed in plan.program.placed():
        match placed.instruction:
            case TransferInstruction(direction=direction, peer=peer):
                channels.add((direction, peer))
            case MoveLogits(source=source, destination=destination):
                sends = source == plan.stage_id
                other = destination if sends else source
                channels.add((Direction.SEND if sends else Direction.RECV, other))
    return frozenset(channels)
