"""Plans that all stages have compiled, checked and compared."""

from dataclasses import dataclass
from typing import Literal

import schedcc
from runtime.agreement import require_same
from runtime.transport.protocol import Transport
from schemas import MoveLogits, StagePlan, TransferInstruction


@dataclass(frozen=True)
class Build:
    """What has to be the same on all stages for a plan to mean the same on all of them."""

    version: str
    partition: tuple[int, ...]
    micro_batches: int
    fingerprint: str


class PlanCache:
    """One stage's plans, by number of micro-batches and wanted outcome."""

    def __init__(
        self,
        transport: Transport,
        partition: tuple[int, ...],
        *,
        overlap: bool | Literal["auto"],
    ) -> None:
        """Compile plans for the stages of `transport`, which hold layers by `partition`."""
        self._transport, self._partition = transport, partition
        self._overlap = overlap is not False  # "auto" takes the form that is seldom slower
        self._plans: dict[tuple[int, schedcc.Outcome], StagePlan] = {}
        self._connected: set[int] = set()

    def plan(self, micro_batches: int, outcome: schedcc.Outcome) -> StagePlan:
        """This stage's plan; all stages have to ask for the same one at the same time.

        A new plan is compiled with its checks, compared with that of the other stages, and the
        connections that it uses are warmed up.

        Raises:
            AgreementError: the stages' plans differ, or what the plans are for.
        """
        key = (micro_batches, outcome)
        if key not in self._plans:
            stages, stage_id = self._transport.stages, self._transport.stage_id
            pipeline = (
                schedcc.compile_pipeline(
                    micro_batches, stages, overlap=self._overlap, outcome=outcome
                )
                if micro_batches
                else schedcc.compile_epilogue(stages, outcome=outcome)
            )
            self._compare(
                Build(schedcc.__version__, self._partition, micro_batches, pipeline.fingerprint)
            )
            self._plans[key] = pipeline.stage(stage_id)
            self._connect(self._plans[key])
        return self._plans[key]

    def _compare(self, mine: Build) -> None:
        builds: list[Build] = self._transport.gather_objects(mine)
        require_same("version of schedcc", [build.version for build in builds])
        require_same("partition of the layers", [build.partition for build in builds])
        require_same("number of micro-batches", [build.micro_batches for build in builds])
        require_same("fingerprint of the plan", [build.fingerprint for build in builds])

    def _connect(self, plan: StagePlan) -> None:
        """Warm up the connections that no plan has used before."""
        instructions = [placed.instruction for placed in plan.program.placed()]
        peers = {i.peer for i in instructions if isinstance(i, TransferInstruction)}
        moves = [i for i in instructions if isinstance(i, MoveLogits)]
        peers |= {end for move in moves for end in move.members(plan.stages)} - {plan.stage_id}
        self._transport.connect(peers - self._connected)
        self._connected |= peers
