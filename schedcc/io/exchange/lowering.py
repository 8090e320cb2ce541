"""The transfers that torch adds to a file which names none."""

from collections import deque
from collections.abc import Mapping, Sequence

from schedcc.errors import PlanFileError
from schedcc.io.exchange.actions import Action, Cell, Kind

_BACKWARDS = {Kind.BACKWARD, Kind.BACKWARD_INPUT}


def with_transfers(rows: Mapping[int, Sequence[Cell]]) -> dict[int, list[Action]]:
    """Add sends and receives as torch does (`_add_send_recv`): what is checked is what runs.

    The stages take turns, in the order of their rows, with one cell each. A forward is followed by
    its send at once, and at the same moment the receive joins what the next stage does; so receives
    always come in the order of the sends. Backward actions count, since they decide whose turn it
    is, with the transfers of their gradients.

    Args:
        rows: The cells of each stage, which form a chain from 0; no transfers among them.

    Raises:
        PlanFileError: a stage waits for what no other stage ever does.
    """
    last = max(rows)
    pending = {stage_id: deque(cells) for stage_id, cells in rows.items()}
    lowered: dict[int, list[Action]] = {stage_id: [] for stage_id in rows}
    done: set[Action] = set()
    while pending:
        progress = False
        for stage_id, cells in list(pending.items()):
            if any(need not in done for need in _needs(cells[0], last)):
                continue
            progress = True
            for action in cells.popleft().actions:
                for new in (action, *_transfers(action, last)):
                    lowered[new.stage_id].append(new)
                    done.add(new)
            if not cells:
                del pending[stage_id]
        if not progress:
            raise PlanFileError(_stuck(pending, done, last))
    return lowered


def _stuck(pending: Mapping[int, Sequence[Cell]], done: set[Action], last: int) -> str:
    """What is wrong where no stage can go on: the cell that waits for what no row has, if any."""
    first = stage_id = next(iter(pending))
    seen: set[int] = set()
    while stage_id not in seen:
        seen.add(stage_id)
        need, other = _awaited(pending[stage_id][0], done, last)
        later = (action for cell in pending.get(other, ()) for action in cell.actions)
        if not any(need in _transfers(action, last) for action in later):
            break
        stage_id = other
    else:
        stage_id = first  # they wait in a circle, where one is as good as another
    cell = pending[stage_id][0]
    need, other = _awaited(cell, done, last)
    return (
        f"{cell.place} is {'; '.join(map(str, cell.actions))}, which waits for stage {other} and "
        f"micro-batch {need.micro_batch}, needed an order in which that comes before"
    )


def _awaited(cell: Cell, done: set[Action], last: int) -> tuple[Action, int]:
    """The first receive that a cell still needs, and the stage that it is from."""
    need = next(need for need in _needs(cell, last) if need not in done)
    return need, need.stage_id + (-1 if need.kind is Kind.RECEIVE else 1)


def _needs(cell: Cell, last: int) -> list[Action]:
    """The receives without which a cell cannot begin."""
    needs = []
    for stage_id, kind, micro_batch in cell.actions:
        if kind is Kind.FORWARD and stage_id > 0:
            needs.append(Action(stage_id, Kind.RECEIVE, micro_batch))
        if kind in _BACKWARDS and stage_id < last:
            needs.append(Action(stage_id, Kind.RECEIVE_GRADIENT, micro_batch))
    return needs


def _transfers(action: Action, last: int) -> tuple[Action, ...]:
    """The send that follows an action, and its receive."""
    stage_id, kind, micro_batch = action
    if kind is Kind.FORWARD and stage_id < last:
        return (
            Action(stage_id, Kind.SEND, micro_batch),
            Action(stage_id + 1, Kind.RECEIVE, micro_batch),
        )
    if kind in _BACKWARDS and stage_id > 0:
        return (
            Action(stage_id, Kind.SEND_GRADIENT, micro_batch),
            Action(stage_id - 1, Kind.RECEIVE_GRADIENT, micro_batch),
        )
    return ()
