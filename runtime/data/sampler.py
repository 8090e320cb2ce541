"""A sampler that gives every replica its share of a data set, and no sample to two of them.

`torch.utils.data.DistributedSampler` makes all shares equally long: it repeats samples, which then
count twice, or leaves some out with `drop_last`. Replicas of an evaluator need no equal shares.
"""

from collections.abc import Iterator, Sized

from torch.utils.data import Sampler


class ShardSampler(Sampler[int]):
    """Every `replicas`-th sample, in order: n samples in, n counted, over all replicas.

    All stages of a replica use the same shares:
    `ShardSampler(data, evaluator.replicas, evaluator.replica)`.

    Examples:
        >>> [list(ShardSampler(range(5), 2, replica)) for replica in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(self, data: Sized, replicas: int, replica: int) -> None:
        """The share of one replica.

        Args:
            data: What is sampled; only its length counts.
            replicas: How many share it.
            replica: Which of them this is, from 0.

        Raises:
            ValueError: there is no such replica.
        """
        if not 0 <= replica < replicas:
            raise ValueError(
                f"replica is {replica} of {replicas} replicas, needed one from 0 to replicas - 1"
            )
        self._share = range(replica, len(data), replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._share)

    def __len__(self) -> int:
        return len(self._share)
