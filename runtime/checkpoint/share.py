"""Who writes which layer."""

from collections.abc import Mapping, Sequence


def shares(sizes: Mapping[int, int], replicas: int) -> dict[int, Sequence[int]]:
    """Divide layers among replicas so that each writes about as many bytes.

    Largest first to whoever has least so far: no share exceeds 4/3 of the best possible largest
    one (R. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969). Every replica computes the
    same division.

    Args:
        sizes: Bytes of each layer, by index.
        replicas: How many share the work.

    Returns:
        The layers of each replica, in order.

    >>> shares({0: 8, 1: 3, 2: 3, 3: 2}, 2)
    {0: [0], 1: [1, 2, 3]}
    """
    loads = [0] * replicas
    taken: dict[int, list[int]] = {replica: [] for replica in range(replicas)}
    for index in sorted(sizes, key=lambda index: (-sizes[index], index)):
        replica = min(range(replicas), key=lambda replica: (loads[replica], replica))
        loads[replica] += sizes[index]
        taken[replica].append(index)
    return {replica: sorted(indices) for replica, indices in taken.items()}
