"""What had to wait for what in a recorded run, on arrays."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from schedcc.analysis.dependencies import Dependencies, Edges, Why, dependencies, ends
from schedcc.io.plan_columns import placed
from schedcc.table.codes import IS_BUFFER, IS_POST, NONE, Bools, Ints
from schedcc.table.rows import Rows
from schedcc.table.table import PlanTable
from schemas import Placed, TransportModel


def existing(rows: Rows, micro_batches: int) -> Bools:
    """`[rows]`: whether a row is none of a micro-batch beyond the first `micro_batches`."""
    return ~IS_BUFFER[rows.op] | (rows.micro_batch < micro_batches)


@dataclass(frozen=True, eq=False)
class RunGraph:
    """The dependency graph of a run of a plan, as far as there was data for it.

    Events are numbered as in `Dependencies`: the rows are those of the micro-batches that there
    were. Offsets are positions in the whole programs, as recordings have them.
    """

    graph: Dependencies
    offset: Ints
    """`[rows]`: the position of each row in its whole program."""

    @classmethod
    def of(
        cls,
        table: PlanTable,
        micro_batches: int | None,
        transport: TransportModel,
        without: Why | None = None,
    ) -> "RunGraph":
        """The graph of a run over `micro_batches` micro-batches (`None`: as many as planned).

        Args:
            table: The plan that was executed, with one program for each rank.
            micro_batches: How many micro-batches the data held.
            transport: What the transfers may rely on.
            without: Edges of this kind are left out.
        """
        count = table.micro_batches if micro_batches is None else micro_batches
        kept = existing(table.rows, count)
        rest = replace(table, rows=table.rows[kept], program=table.program[kept])
        graph = dependencies(rest, transport)
        if without is not None:
            edges = tuple(edges for edges in graph.edges if edges.why != without)
            graph = replace(graph, edges=edges)
        return cls(graph, table.offset[kept])

    @property
    def table(self) -> PlanTable:
        """The rows that there was data for."""
        return self.graph.table

    @cached_property
    def ends_posted(self) -> Bools:
        """`[events]`: whether an event is the end of a posted transfer, which nobody records."""
        found = np.zeros(self.graph.events, dtype=bool)
        found[ends(np.flatnonzero(IS_POST[self.table.rows.op]))] = True
        return found

    @cached_property
    def _first_rows(self) -> Ints:
        return np.append(self.table.first, len(self.table.rows))

    def rows_at(self, rank: int, offsets: Ints) -> Ints:
        """The rows at positions of a rank's program; `NONE` where the run has none."""
        programs = np.flatnonzero(self.table.rank_ids == rank)
        if len(programs) == 0:
            return np.full(len(offsets), NONE)
        first, stop = self._first_rows[programs[0] : programs[0] + 2]
        own = self.offset[first:stop]
        index = np.searchsorted(own, offsets)
        there = index < len(own)
        there[there] = own[index[there]] == offsets[there]
        return np.where(there, first + index, NONE)

    def rank_of(self, event: int) -> int:
        """The rank of an event, in its pipeline."""
        return int(self.table.rank[event // 2])

    def placed(self, event: int) -> Placed:
        """The instruction that an event is the start or the end of."""
        row = event // 2
        step, offset = int(self.table.rows.step[row]), int(self.offset[row])
        if step == NONE:
            program = self.table.program[row]
            epilogue = self.table.epilogues[program]
            of_end = row - int(self._first_rows[program + 1])
            return Placed(offset, None, epilogue[of_end])
        return Placed(offset, step, placed(self.table.rows, row).instruction)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Edges by one of their ends."""

    other: Ints
    kind: Ints
    first: Ints
    whys: tuple[Why, ...]

    @classmethod
    def after(cls, graph: Dependencies, sources: Bools, targets: Bools) -> "Neighbours":
        """The edges between two sets of events, by their sources."""
        edges = _between(graph, sources, targets)
        return cls._sorted(graph, [(e.source, e.target) for e in edges])

    @classmethod
    def before(cls, graph: Dependencies, sources: Bools, targets: Bools) -> "Neighbours":
        """The edges between two sets of events, by their targets."""
        edges = _between(graph, sources, targets)
        return cls._sorted(graph, [(e.target, e.source) for e in edges])

    @classmethod
    def _sorted(cls, graph: Dependencies, pairs: list[tuple[Ints, Ints]]) -> "Neighbours":
        own = np.concatenate([pair[0] for pair in pairs])
        other = np.concatenate([pair[1] for pair in pairs])
        kind = np.repeat(np.arange(len(pairs)), [len(pair[0]) for pair in pairs])
        order = np.argsort(own, kind="stable")
        first = np.zeros(graph.events + 1, dtype=np.int64)
        np.cumsum(np.bincount(own, minlength=graph.events), out=first[1:])
        return cls(other[order], kind[order], first, tuple(e.why for e in graph.edges))

    def of_all(self, events: Ints) -> Ints:
        """The neighbours of several events, one after the other."""
        counts = self.first[events + 1] - self.first[events]
        skipped = np.repeat(self.first[events] - np.cumsum(counts) + counts, counts)
        found: Ints = self.other[skipped + np.arange(counts.sum())]
        return found

    def of_one(self, event: int) -> dict[int, Why]:
        """The neighbours of one event, each with the last of the reasons for it."""
        own = slice(self.first[event], self.first[event + 1])
        kinds = self.kind[own].tolist()
        return {
            other: self.whys[kind]
            for other, kind in zip(self.other[own].tolist(), kinds, strict=True)
        }


def _between(graph: Dependencies, sources: Bools, targets: Bools) -> list[Edges]:
    kept = [sources[edges.source] & targets[edges.target] for edges in graph.edges]
    return [
        Edges(edges.source[inside], edges.target[inside], edges.why)
        for edges, inside in zip(graph.edges, kept, strict=True)
    ]
