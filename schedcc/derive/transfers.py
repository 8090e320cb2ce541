"""The order of a step's transfers: slots, in each of which a rank has one transfer at most.

In a step, the ranks and the activations that travel between them form a multigraph. A colour for
each of its edges, different where two edges meet in a rank (a proper edge colouring), is an order
of the transfers in which nobody waits in a circle: all ranks go through the slots one after the
other, and both ends of a transfer are in the same slot. Chains and rings of an even number of ranks
need two slots, rings of an odd number three.

A channel has the same slot in every step, so that the order of a rank's transfers does not change:
what is coloured are the channels, as nodes of a graph whose edges join those that meet in a rank in
some step. On a chain, where channel `s -> s + 1` meets its two neighbours, the colours are those of
DeepSpeed's schedule: even stages send first, odd stages receive first.
"""

from collections import deque

import networkx as nx
import numpy as np

from schedcc.table.codes import Ints


def slots(source: Ints, destination: Ints, step: Ints, ranks: int) -> tuple[Ints, int]:
    """The slot of each transfer in its step.

    Args:
        source: `[transfers]`: the rank that sends.
        destination: `[transfers]`: the rank that receives.
        step: `[transfers]`: when.
        ranks: R.

    Returns:
        `[transfers]`: slots, and how many a step has at most.
    """
    channel = source * ranks + destination
    known, number = np.unique(channel, return_inverse=True)
    if len(known) == 0:
        return channel, 0
    colours = _colours(conflicts(source, destination, step, number))
    of_channel = np.array([colours[n] for n in range(len(known))], dtype=np.int64)
    return of_channel[number], int(of_channel.max()) + 1


def conflicts(source: Ints, destination: Ints, step: Ints, channel: Ints) -> "nx.Graph[int]":
    """The channels, joined where two of them meet in one rank in one step.

    Args:
        source: `[transfers]`: the rank that sends.
        destination: `[transfers]`: the rank that receives.
        step: `[transfers]`: when.
        channel: `[transfers]`: the channel's number, from 0.
    """
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(int(channel.max(initial=-1)) + 1))
    rank, when, what = (
        np.concatenate(pair) for pair in ((source, destination), (step, step), (channel, channel))
    )
    order = np.lexsort((what, when, rank))
    rank, when, what = rank[order], when[order], what[order]
    distance, more = 1, True
    while more:  # the transfers of a rank in a step stand side by side
        left, right = slice(None, -distance), slice(distance, None)
        meet = (rank[left] == rank[right]) & (when[left] == when[right])
        pairs = np.unique(np.stack([what[left][meet], what[right][meet]], axis=1), axis=0)
        graph.add_edges_from(pair for pair in pairs.tolist() if pair[0] != pair[1])
        distance, more = distance + 1, bool(meet.any())
    return graph


def _colours(graph: "nx.Graph[int]") -> dict[int, int]:
    """Colours for the nodes, the first that is free, breadth first from the lowest node.

    So two are enough wherever they can be: what is reached is coloured by its distance.
    """

    def breadth_first(graph: "nx.Graph[int]", _: dict[int, int]) -> list[int]:
        order: dict[int, None] = {}
        for start in sorted(graph):
            queue = deque([start])
            while queue:
                node = queue.popleft()
                if node not in order:
                    order[node] = None
                    queue.extend(sorted(graph[node]))
        return [*order]

    found: dict[int, int] = nx.greedy_color(graph, strategy=breadth_first)
    return found
