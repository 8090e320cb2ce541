"""The data that the compiler, the interpreter and other programs exchange.

Imports point one way: `schemas <- schedcc <- runtime`; nothing here imports either.
"""

from schemas.effects import Access, Direction, Effects, Phase, Place, Position, places
from schemas.instructions import (
    AllReduceLoss,
    BroadcastLoss,
    BufferInstruction,
    CollectLogits,
    EpilogueInstruction,
    ForwardPass,
    GroupEnd,
    GroupInstruction,
    GroupStart,
    Instruction,
    LoadMicroBatch,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    ReduceLoss,
    ResultInstruction,
    SendActivation,
    StepInstruction,
    Transfer,
    TransferInstruction,
    WaitRecvActivation,
    WaitSendActivation,
)
from schemas.plans import PipelinePlan, Placed, PlanHeader, StagePlan, StageProgram, Step
from schemas.reports import Finding, FindingCode, Report
from schemas.results import LanguageModelEvaluation, StageSummary, Verification
from schemas.timeline import Costs, Span, StageTimeline, Timeline
from schemas.transport import TransportModel

__all__ = [
    "Access",
    "AllReduceLoss",
    "BroadcastLoss",
    "BufferInstruction",
    "CollectLogits",
    "Costs",
    "Direction",
    "Effects",
    "EpilogueInstruction",
    "Finding",
    "FindingCode",
    "ForwardPass",
    "GroupEnd",
    "GroupInstruction",
    "GroupStart",
    "Instruction",
    "LanguageModelEvaluation",
    "LoadMicroBatch",
    "Phase",
    "PipelinePlan",
    "Place",
    "Placed",
    "PlanHeader",
    "Position",
    "PostRecvActivation",
    "PostSendActivation",
    "RecvActivation",
    "ReduceLoss",
    "Report",
    "ResultInstruction",
    "SendActivation",
    "Span",
    "StagePlan",
    "StageProgram",
    "StageSummary",
    "StageTimeline",
    "Step",
    "StepInstruction",
    "Timeline",
    "Transfer",
    "TransferInstruction",
    "TransportModel",
    "Verification",
    "WaitRecvActivation",
    "WaitSendActivation",
    "places",
]
