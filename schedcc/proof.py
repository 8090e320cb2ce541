"""The verdict on a schedule of any size, in a time that does not depend on the micro-batches.

The programs of a schedule that repeats are a head, some periods and a tail. No question looks
further than from one period to the next: the edges of the dependency graph, the lives of places and
the numbers of a channel's transfers join a micro-batch to those a period before and behind it at
most. And the timetable that proves freedom from deadlock is linear in the steps. So programs with
two periods, in which every such neighbourhood is to be found, have the verdict of all longer ones.
"""

from schedcc.analysis.order import Order
from schedcc.derive.programs import Programs
from schedcc.schedules.epilogue import Outcome, epilogues
from schedcc.table.table import PlanTable
from schedcc.verify import locally_sound, order_sound
from schemas import TransportModel


def proven(programs: Programs, outcome: Outcome, transport: TransportModel) -> bool:
    """Whether a look at arrays finds programs sound, under a model of the transport or a stricter.

    `False` proves nothing.
    """
    after = epilogues(programs.placement, outcome)
    parts = [(rank, *part) for rank, part in enumerate(zip(programs.rows, after, strict=True))]
    table = PlanTable.joined(programs.header(), parts)
    # How far buffered sends reach has no bound; what holds without them holds with them.
    strict = TransportModel(queue=transport.queue, step_barrier=transport.step_barrier)
    return locally_sound(table, alone=False) and order_sound(Order(table, strict))
