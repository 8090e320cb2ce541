"""Sets of ids in words, however large."""

from collections.abc import Iterable


def gaps(present: Iterable[int], count: int) -> list[range]:
    """The ids from 0 to `count` - 1 that are not in `present`, as ranges.

    >>> gaps([1, 2, 5], 9)
    [range(0, 1), range(3, 5), range(6, 9)]
    """
    missing, expected = [], 0
    for number in sorted({n for n in present if 0 <= n < count}):
        if number > expected:
            missing.append(range(expected, number))
        expected = number + 1
    if expected < count:
        missing.append(range(expected, count))
    return missing


def runs(ids: Iterable[int]) -> list[range]:
    """The ids as ranges of neighbours.

    >>> runs([5, 1, 2, 2])
    [range(1, 3), range(5, 6)]
    """
    found: list[range] = []
    for number in sorted(set(ids)):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def in_words(noun: str, ranges: Iterable[range]) -> str:
    """Name the ids in `ranges`.

    >>> in_words("stage", [range(0, 1)]), in_words("stage", [range(0, 1), range(3, 6)])
    ('stage 0', 'stages 0, 3-5')
    >>> in_words("micro-batch", [range(2)])
    'micro-batches 0-1'
    """
    parts = [str(r[0]) if r.stop - r.start == 1 else f"{r[0]}-{r[-1]}" for r in ranges]
    plural = len(parts) > 1 or (parts and "-" in parts[0])
    ending = ("es" if noun.endswith("ch") else "s") if plural else ""
    return f"{noun}{ending} {', '.join(parts)}"


def needed(count: int) -> str:
    """Which ids there are, for messages.

    >>> needed(1), needed(4)
    ('needed 0', 'needed 0 to 3')
    """
    return "needed 0" if count == 1 else f"needed 0 to {count - 1}"
