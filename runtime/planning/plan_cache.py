"""Plans that all stages have compiled, checked and compared, ready to be executed."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import schedcc
from runtime.distributed.agreement import require_same
from runtime.execution.buffers import BufferPool
from runtime.execution.interpreter import Interpreter
from runtime.execution.program import Program
from runtime.modules.division import Division
from runtime.planning.sources import PlanSource
from runtime.transport.protocol import PeerChannel, Transport
from schemas import Direction, MoveLogits, Placed

_Key = tuple[int | None, schedcc.Outcome, bool]

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
    """One rank's plans, by number of micro-batches, wanted outcome and variant."""

    def __init__(
        self,
        transport: Transport,
        source: PlanSource,
        division: Division,
        buffers: BufferPool,
    ) -> None:
        """Have plans of `source` executed over `transport`.

        Args:
            transport: Connection to the other ranks.
            source: Where plans come from.
            division: How the layers are divided into stages.
            buffers: Where the plans of this rank are executed.
        """
        self._transport, self._source = transport, source
        self._division, self._buffers = division, buffers
        self._known: OrderedDict[_Key, Interpreter] = OrderedDict()
        self._connected: set[PeerChannel] = set()

    def connect(self) -> None:
        """Make sure of the schedule's channels before anything else uses them.

        Raises:
            AgreementError: the ranks' builds or partitions differ.
        """
        if not self._connected and self._transport.ranks > 1:
            self.interpreter(1, schedcc.Outcome(compute_loss=False), overlap=True)

    def interpreter(
        self, micro_batches: int | None, outcome: schedcc.Outcome, *, overlap: bool
    ) -> Interpreter:
        """What executes this rank's plan; all ranks have to ask for the same at the same time.

        Of `None` micro-batches: a plan for as many as there are, if the source has such plans.

        A new plan has passed its checks. It is compared with that of the other ranks, and the
        channels that it uses are warmed up. The plans that were asked for last are remembered.

        Raises:
            AgreementError: the ranks' plans differ, or what the plans are for.
            ScheduleError: there is no plan for so many micro-batches.
        """
        key = (micro_batches, outcome, overlap)
        if key not in self._known:
            if micro_batches is None:
                self._remember_endless(key)
            else:
                plan = self._source.plan(micro_batches, outcome, overlap=overlap)
                program = Program.of(plan.rank(self._transport.rank))
                self._remember(key, program, plan.fingerprint)
        self._known.move_to_end(key)
        return self._known[key]

    def _remember_endless(self, key: _Key) -> None:
        rank = self._transport.rank
        plan = self._source.endless_plan(key[1], overlap=key[2])
        program = Program(
            rank,
            plan.header.unit,
            plan.header.placement,
            plan.header.num_buffers,
            partial(plan.placed, rank),
            tuple(Placed(0, None, found) for found in plan.epilogue(rank)),
            plan.instructions_of_a_micro_batch(rank),
        )
        self._remember(key, program, plan.fingerprint)

    def _remember(self, key: _Key, program: Program, fingerprint: str) -> None:
        opens = _channels(program) - self._connected
        build = Build(schedcc.__version__, self._division, key[0] or 0, fingerprint, opens)
        if self._compare(build):
            self._open(opens)
        self._known[key] = Interpreter(program, self._transport, self._buffers)
        if len(self._known) > PLANS:
            self._known.popitem(last=False)

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


def _channels(program: Program) -> frozenset[PeerChannel]:
    """The channels that a program uses, in its epilogue as well."""
    channels: set[PeerChannel] = set()
    here, rank_of = program.rank, program.placement
    for before, after in pairwise(rank_of):
        if before == here != after:
            channels.add((Direction.SEND, after))
        if before != here == after:
            channels.add((Direction.RECV, before))
    for placed in program.epilogue:
        match placed.instruction:
            case MoveLogits(source=source, destination=destination):
                sends = rank_of[source] == here
                other = rank_of[destination if sends else source]
                channels.add((Direction.SEND if sends else Direction.RECV, other))
    return frozenset(channels)
