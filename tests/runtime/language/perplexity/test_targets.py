"""Whether the sentence about targets in the report is true."""

from itertools import product

import pytest
import torch

from runtime.language.perplexity.summary import targets_of
from runtime.language.text import Documents, TextError, Windows
from runtime.language.text.spans import spans_of

LENGTH = 6
ALONE = "every token of every document, and no separator"
APART = "every token of every document but the first of each window, and no separator"


@pytest.mark.parametrize(
    ("mode", "bos", "stride", "said"),
    [
        ("whole", None, None, "every token once, but the first of each window"),
        ("whole", 0, None, "every token once"),
        ("whole", None, 4, "every token once, but the first of each text"),
        ("whole", None, LENGTH, "every token once, but the first of each window"),
        ("packed", None, None, "every token once, but the first of each window and separators"),
        ("packed", None, 4, "every token once, but separators"),
        ("packed", 0, 4, "every token once, but separators"),
        ("lines", None, None, ALONE),
        ("lines", None, LENGTH - 1, ALONE),
        ("lines", None, LENGTH, APART),
    ],
)
def test_the_report_says_what_is_a_target(mode, bos, stride, said):
    empty = torch.empty(0, dtype=torch.int64)
    assert targets_of(Documents(empty, empty, mode, 0, bos), LENGTH, stride) == said


@pytest.mark.parametrize("length", [2, LENGTH])
@pytest.mark.parametrize(
    ("mode", "bos"), product(["whole", "texts", "lines", "packed"], [None, 2000])
)
def test_targets_are_those_that_the_report_says(mode, bos, length):
    starts = torch.tensor([0, 17, 19, 31, 40])
    documents = Documents(torch.arange(40), starts, mode, 0, bos)
    for stride in (None, *range(1, length + 1)):
        if bos is not None and stride == length:
            with pytest.raises(TextError, match=f"at most {length - 1} is needed"):
                Windows(documents, length, 3, stride=stride)
            continue
        windows = Windows(documents, length, 3, stride=stride)
        found = torch.cat([windows.targets(number) for number in range(len(windows))])
        expected = claimed(documents, length, stride)
        assert sorted(found.tolist()) == expected, (mode, bos, stride)
        assert windows.tokens == len(expected)


def claimed(documents: Documents, length: int, stride: int | None) -> list[int]:
    """The places of the targets, by what the report says of them."""
    said = targets_of(documents, length, stride)
    assert said.startswith("every token")
    firsts = set(documents.starts[:-1].tolist())
    without = set()
    if "first of each window" in said:
        without |= set(spans_of(documents, length, stride).starts.tolist())
    if "first of each text" in said or "separator" in said:
        without |= firsts
    return sorted({*range(len(documents.tokens))} - without)
