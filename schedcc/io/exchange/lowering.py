"""The transfers that torch adds to a file which names none."""

from collections import deque
from collections.abc import Mapping, Sequence

from schedcc.errors import PlanFileError
from schedcc.io.exchange.actions import Action, Cell, Kind

_BACKWARDS = (Kind.BACKWARD, Kind.BACKWARD_INPUT)


def with_transfers(
    rows: Mapping[int, Sequence[Cell]], placement: Sequence[int]
) -> dict[int, list[Action]]:
    """Add sends and receives as torch does (`_add_send_recv`): what is checked is what runs.

    The ranks take turns, in the order of their rows, with one cell each. A forward is followed by
    its send at once, and at the same moment the receive joins what the next stage's rank does; so
    receives always come in the order of the sends. Between two stages of one rank nothing is sent.
    Backward actions count, since they decide whose turn it is, with the transfers of their
    gradients.

    Args:
        rows: The cells of each rank; no transfers among them.
        placement: The rank of each stage.

    Raises:
        PlanFileError: a rank waits for what no other rank ever does.
    """
    pending = {rank: deque(cells) for rank, cells in rows.items() if cells}
    lowered: dict[int, list[Action]] = {rank: [] for rank in rows}
    done: set[Action] = set()
    while pending:
        progress = False
        for rank, cells in list(pending.items()):
            if _missing(cells[0], placement, done) is not None:
                continue
            progress = True
            for action in cells.popleft().actions:
                for new in (action, *_transfers(action, placement)):
                    lowered[placement[new.stage_id]].append(new)
                    done.add(new)
            if not cells:
                del pending[rank]
        if not progress:
            raise PlanFileError(_stuck(pending, placement, done))
    return lowered


def _stuck(
    pending: Mapping[int, Sequence[Cell]], placement: Sequence[int], done: set[Action]
) -> str:
    """What is wrong where no rank can go on: the cell that waits for what no row has, if any."""
    rank = next(iter(pending))
    seen: set[int] = set()
    while rank not in seen:  # or they wait in a circle, where one is as good as another
        seen.add(rank)
        need = _missing(pending[rank][0], placement, done)
        assert need is not None
        kinds = _BACKWARDS if need.kind in _BACKWARDS else (need.kind,)
        needed = {need._replace(kind=kind) for kind in kinds}
        other = placement[need.stage_id]
        if all(needed.isdisjoint(cell.actions) for cell in pending.get(other, ())):
            break
        rank = other
    cell = pending[rank][0]
    need = _missing(cell, placement, done)
    assert need is not None
    return (
        f"{cell.place} is {'; '.join(map(str, cell.actions))}, which waits for stage "
        f"{need.stage_id} and micro-batch {need.micro_batch}, needed an order in which that "
        "comes before"
    )


def _missing(cell: Cell, placement: Sequence[int], done: set[Action]) -> Action | None:
    """An action of another stage without which a cell cannot begin, and which is not done."""
    last = len(placement) - 1
    for stage_id, kind, micro_batch in cell.actions:
        if kind is Kind.FORWARD and stage_id > 0:
            before = Action(stage_id - 1, Kind.FORWARD, micro_batch)
            if before not in done:
                return before
        if kind in _BACKWARDS and stage_id < last:
            after = [Action(stage_id + 1, backward, micro_batch) for backward in _BACKWARDS]
            if done.isdisjoint(after):
                return after[0]
    return None


def _transfers(action: Action, placement: Sequence[int]) -> tuple[Action, ...]:
    """The send that follows an action, and its receive."""
    stage_id, kind, micro_batch = action
    towards = {Kind.FORWARD: 1, **dict.fromkeys(_BACKWARDS, -1)}.get(kind, 0)
    other = stage_id + towards
    if other == stage_id or not 0 <= other < len(placement):
        return ()
    if placement[other] == placement[stage_id]:
        return ()
    if kind is Kind.FORWARD:
        return Action(stage_id, Kind.SEND, micro_batch), Action(other, Kind.RECEIVE, micro_batch)
    return (
        Action(stage_id, Kind.SEND_GRADIENT, micro_batch),
        Action(other, Kind.RECEIVE_GRADIENT, micro_batch),
    )
