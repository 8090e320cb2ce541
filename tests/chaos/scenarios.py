"""What is tried on a cluster: one fault or a pair, in any phase, and what must come of it."""

import random
import time
from tempfile import TemporaryDirectory

from tests.chaos.cluster import Cluster
from tests.chaos.expectations import (
    check,
    check_evaluation,
    check_parted,
    check_recovery,
    check_refusal,
    check_separation,
    check_story,
)
from tests.chaos.faults import (
    INTERRUPTING,
    LOST,
    MICRO_BATCHES,
    RECOVERABLE,
    STALLED,
    Fault,
    Kind,
    Phase,
)
from tests.chaos.network import BREAK, SEPARATIONS, NetworkFault, repair
from tests.chaos.odd_errors import ODD_ERRORS
from tests.chaos.orders import Operation
from tests.support.hosts import Hosts

RAISING: tuple[Kind, ...] = ("layer raises", "listener raises", "iterator raises", *ODD_ERRORS)
OPERATIONS: dict[Phase, Operation] = {"saving": "save", "loading": "load"}
PHASES: tuple[Phase, ...] = ("opening", "saving", "loading")


class Trial:
    """Faults on a cluster, of which it recovers or not."""

    def __init__(
        self,
        cluster: Cluster,
        chance: random.Random,
        sockets: dict[int, int] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        """On a cluster.

        Args:
            cluster: Where faults happen.
            chance: That chooses them.
            sockets: That its processes held after their first evaluation.
            hosts: On which they are, if it is two; the second one has no store.
        """
        self._cluster, self._chance, self._sockets = cluster, chance, sockets or {}
        self._hosts = hosts
        self.faults: tuple[Fault, ...] = ()
        """What is tried now."""
        self._connecting = 0
        self.over = False
        """Whether the processes cannot be used any more."""
        self.attempts = [self.single, self.outside, self.pair]
        """What can be tried; each gives the fault's name, and the seconds until all knew."""
        if hosts is not None:
            self.attempts.append(self.network)

    def begin(self) -> None:
        """The first evaluation of the processes, without a fault."""
        first = self._cluster.evaluate(Fault("none", 0))
        check_evaluation(self._cluster.setup.stages, first)
        self._sockets = {stage: outcome.sockets for stage, outcome in first.items()}

    def single(self, *, fatal: bool) -> tuple[str, float]:
        """A fault in a run: its name, and the seconds until all knew."""
        kinds = (*LOST, *STALLED) if fatal else (*RECOVERABLE, *ODD_ERRORS)
        fault = Fault.draw(self._chance, self._cluster.setup.stages, kinds)
        self.faults = (fault,)
        outcomes = self._cluster.evaluate(fault)
        check(fault, self._cluster.setup.stages, outcomes)
        seconds = self._cluster.seconds(outcomes)
        self._go_on(fault)
        return self._named(fault.kind), seconds

    def outside(self, *, fatal: bool) -> tuple[str, float]:
        """A fault outside a run."""
        kind = self._chance.choice((*LOST, "stopped") if fatal else INTERRUPTING)
        return self.in_phase(kind, self._chance.choice(PHASES))

    def in_phase(self, kind: Kind, phase: Phase) -> tuple[str, float]:
        """A fault of that kind on some rank, in that phase."""
        stage = self._chance.randrange(self._cluster.setup.stages)
        fault = Fault(kind, stage, self._chance.randrange(3) if phase == "opening" else 0, phase)
        self.faults = (fault,)
        if phase == "opening":  # which comes after a failure
            self._cluster.evaluate(Fault("layer raises", 0))
        with TemporaryDirectory() as directory:
            if phase == "loading":
                self._cluster.do("save", directory)
            outcomes = self._cluster.do(OPERATIONS.get(phase, "evaluate"), directory, fault)
        assert self._cluster.struck(fault), fault
        check_story([fault], outcomes)
        seconds = self._cluster.seconds(outcomes)
        self._go_on(fault)
        return self._named(f"{phase}: {kind}"), seconds

    def pair(self, *, fatal: bool) -> tuple[str, float]:
        """A fault on one rank, and another one on another: in the same run, or of who is told."""
        kinds: tuple[Kind, ...] = ("killed", "stopped", "crashes")
        kinds = kinds if fatal else ("raises", "interrupted")
        if self._chance.random() < 0.5:
            beside = self._chance.choice(kinds) if fatal else "interrupted"
            return self.two(self._chance.choice(RAISING), beside, telling=True)
        one = self._chance.choice((*RAISING, *kinds))
        return self.two(one, self._chance.choice(kinds), telling=False)

    def network(self, *, fatal: bool) -> tuple[str, float]:
        """A fault of the network between two hosts, which is repaired; a slow one is none."""
        kinds = SEPARATIONS if fatal else tuple(BREAK)
        return self.network_fault(self._chance.choice(kinds))

    def network_fault(self, kind: NetworkFault) -> tuple[str, float]:
        """One of that kind, at some micro-batch of some stage."""
        assert self._hosts is not None
        hosts, stages = self._hosts, self._cluster.setup.stages
        fault = Fault(kind, self._chance.randrange(stages), self._chance.randrange(MICRO_BATCHES))
        self.faults = (fault,)
        began = time.monotonic()
        try:
            outcomes = self._cluster.evaluate(fault, outside=lambda: BREAK[kind](hosts))
        finally:
            repair(hosts)
        seconds = self._cluster.seconds(outcomes)
        if kind == "slow network":
            check(fault, stages, outcomes)
        else:
            check_separation(self._cluster, outcomes)
        if kind != "slow network":  # TCP tries again after as long as it has tried in vain
            time.sleep(time.monotonic() - began)
        if any(outcome.error == "LostPeerError" for outcome in outcomes.values()):
            check_parted(self._cluster)
            self.over = True
        else:
            self._go_on(fault)
        return self._named(kind), seconds

    def two(self, one: Kind, beside: Kind, *, telling: bool) -> tuple[str, float]:
        """A fault on some rank, and one on another: at once, or while that tells of the first."""
        first, second = self._chance.sample(range(self._cluster.setup.stages), 2)
        if one == "iterator raises":
            first, second = 0, max(first, second)
        micro_batch = self._chance.randrange(MICRO_BATCHES)
        there = self._chance.choice((micro_batch, self._chance.randrange(MICRO_BATCHES)))
        faults = (
            Fault(one, first, micro_batch),
            Fault(beside, second, there, "telling" if telling else "running"),
        )
        self.faults = faults
        outcomes = self._cluster.evaluate(*faults)
        check_story(faults, outcomes)
        seconds = self._cluster.seconds(outcomes)
        self._go_on(*faults)
        return self._named(f"two {'while told' if telling else 'at once'}: {beside}"), seconds

    def _named(self, name: str) -> str:
        return f"hosts: {name}" if self._cluster.setup.namespaces else name

    def _go_on(self, *faults: Fault) -> None:
        """Let stopped ranks go on; the others and they evaluate again, or refuse to."""
        struck = [fault for fault in faults if self._cluster.struck(fault)]
        for fault in struck:
            if fault.kind == "stopped":
                assert self._cluster.resume(fault.stage).error
        kinds = {fault.kind for fault in struck}
        if "hangs" in kinds:
            self.over = True
        elif kinds & {*LOST}:
            check_refusal(self._cluster)
            self.over = True
        else:
            self._connecting += any(fault.phase == "opening" for fault in struck)
            check_recovery(self._cluster, self._sockets, self._connecting)
