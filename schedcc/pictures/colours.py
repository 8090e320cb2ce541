"""Colours of stages that people with any kind of colour vision can tell apart."""

from collections.abc import Sequence

_FEW = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Okabe and Ito, "Color Universal Design" (2008), without black."""

_MANY = ("#3b528b", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
"""Points of viridis (Smith and van der Walt, matplotlib, 2015): lightness grows along it, so that
an order is seen without hues, too. Its darkest quarter is left out, for dark pages."""


def stage_colours(stages: Sequence[int]) -> dict[int, str]:
    """A colour for each stage, as `#rrggbb`: of a few, distinct ones; of more, a scale.

    >>> stage_colours([0, 1])
    {0: '#0072b2', 1: '#e69f00'}
    >>> stage_colours(range(100))[99]
    '#fde725'
    """
    if len(stages) <= len(_FEW):
        return dict(zip(stages, _FEW, strict=False))
    last = len(stages) - 1
    return {stage: _on_scale(number / last) for number, stage in enumerate(stages)}


def is_dark(colour: str) -> bool:
    """Whether white text is read better on a colour than black (relative luminance of WCAG 2).

    >>> is_dark("#0072b2"), is_dark("#f0e442")
    (True, False)
    """
    linear: list[float] = [(channel / 255) ** 2.2 for channel in _channels(colour)]
    luminance: float = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return luminance < 0.179


def _on_scale(place: float) -> str:
    index, rest = divmod(place * (len(_MANY) - 1), 1)
    low, high = (_MANY[min(int(index) + i, len(_MANY) - 1)] for i in (0, 1))
    mixed = (
        round(a + (b - a) * rest) for a, b in zip(_channels(low), _channels(high), strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
