"""The cells of a CSV file of `torch.distributed.pipelining`: one action each.

A cell names a stage, what it does, and the micro-batch: `2F0`, `1SEND_F3`. A row is one rank. The
grammar is that of `_Action.from_str` (`torch/distributed/pipelining/schedules.py`, torch 2.13),
except that torch ignores whatever follows an action in its cell.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from schedcc.errors import PlanFileError


class Kind(StrEnum):
    """What an action does; the values are those in the files."""

    FORWARD = "F"
    SEND = "SEND_F"
    RECEIVE = "RECV_F"
    BACKWARD = "B"
    BACKWARD_INPUT = "I"
    BACKWARD_WEIGHT = "W"
    SEND_GRADIENT = "SEND_B"
    RECEIVE_GRADIENT = "RECV_B"
    UNSHARD = "UNSHARD"
    RESHARD = "RESHARD"
    REDUCE_GRADIENT = "REDUCE_GRAD"


FORWARD_KINDS = {Kind.FORWARD, Kind.SEND, Kind.RECEIVE}
"""What an evaluation executes: torch's `eval` passes over everything else."""
TRANSFERS = {Kind.SEND, Kind.RECEIVE, Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT}
_WITHOUT_MICRO_BATCH = {Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRADIENT}

_ACTION = re.compile(rf"([0-9]{{1,18}})({'|'.join(Kind)})([0-9]{{0,18}})")
_OVERLAPPED = re.compile(r"\(([^()]*)\)OVERLAP_F_B")


class Action(NamedTuple):
    """One action of a stage."""

    stage_id: int
    kind: Kind
    micro_batch: int
    """-1 for the kinds that belong to no micro-batch."""

    def __str__(self) -> str:
        return f"{self.stage_id}{self.kind}{self.micro_batch if self.micro_batch >= 0 else ''}"


class Cell(NamedTuple):
    """What one cell holds: an action, or the parts of an overlapped forward and backward."""

    place: str
    """Row and cell in words, counted from 1, for messages."""
    actions: tuple[Action, ...]


def parse_cell(text: str, place: str) -> Cell:
    """Read a cell that is not empty.

    Raises:
        PlanFileError: it holds no action; the message begins with `place`.
    """
    overlapped = _OVERLAPPED.fullmatch(text.strip())
    parts = overlapped.group(1).split(";") if overlapped else [text]
    return Cell(place, tuple(_parse_action(part.strip(), place) for part in parts))


def _parse_action(text: str, place: str) -> Action:
    match = _ACTION.fullmatch(text)
    shown = repr(text if len(text) <= 40 else text[:37] + "...")
    if match is None:
        raise PlanFileError(f"{place} is {shown}, needed an action such as 2F0 or 1SEND_F3")
    stage_id, kind, micro_batch = match.groups()
    if not micro_batch and kind not in _WITHOUT_MICRO_BATCH:
        raise PlanFileError(f"{place} is {shown}, needed its micro-batch, such as {text}0")
    return Action(int(stage_id), Kind(kind), int(micro_batch) if micro_batch else -1)
