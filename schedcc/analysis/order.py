"""What waits for what in a table's programs under a model of the transport, worked out once."""

from dataclasses import dataclass
from functools import cached_property

from schedcc.analysis.dependencies import Dependencies, dependencies
from schedcc.analysis.timetable import follows_a_timetable
from schedcc.table.table import PlanTable
from schemas import TransportModel


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a table's programs."""

    table: PlanTable
    transport: TransportModel

    @cached_property
    def graph(self) -> Dependencies:
        """The dependency graph; transfers whose counterpart is not in the table are left out."""
        return dependencies(self.table, self.transport)

    @cached_property
    def proven(self) -> bool:
        """Whether a known timetable proves freedom from deadlock, and speed.

        `False` proves nothing: the programs may be of another schedule.
        """
        return follows_a_timetable(self.graph)
