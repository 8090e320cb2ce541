"""Edited files never crash `schedcc` or exhaust memory; see `tests/tools/fuzz/commands.py`."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.support.command_line import Run
from tests.support.fuzzing import ends_of
from tests.tools.fuzz.commands import check_file, complaint, costs, csv_files, plans, recordings

KINDS = {"plan": plans, "csv": csv_files, "recording": recordings, "costs": costs}


@pytest.mark.slow
def test_edited_files_end_in_an_exit_status_and_a_sentence_within_bounded_memory(tmp_path):
    """In a process of its own, whose address space is bounded."""
    options = ("--number", "150", "--seed", "11", "--megabytes", "100")
    counts: Counter[str] = Counter()
    for ends in ends_of(KINDS, tmp_path, *options).values():
        counts.update({how.removeprefix("exit "): number for how, number in ends.items()})
    assert sum(counts.values()) == 600
    assert set(counts) == {"0", "1", "2"}  # the edits reach everything
    assert min(counts.values()) > 50, counts


def test_what_is_edited_is_a_valid_file(tmp_path):
    for name in ("plan", "csv"):
        for number, seed in enumerate(KINDS[name](tmp_path).seeds):
            file = tmp_path / f"{number}{seed.suffix}"
            file.write_bytes(seed.content)
            run = check_file(file)
            assert (run.status, complaint(file, run)) == (0, None)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_makes_the_same_files(tmp_path, name):
    kind = KINDS[name](tmp_path)

    def some() -> list[bytes]:
        random = Random(5)
        return [kind.edit(random.choice(kind.seeds).content, random, kind.seeds) for _ in range(50)]

    assert some() == some()
    assert len(set(some())) > 40


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(0, "p.json: sound (structure)\n", ""), None),
        (Run(1, "buffer: x\np.json: 1 finding (structure)\n", ""), None),
        (Run(2, "", "p.json: not a plan: x\n"), None),
        (Run(2, "", "p.json: not a\nplan\n"), "no line of error"),
        (Run(2, "", "max() arg is an empty sequence\n"), "no line of error"),
        (Run(2, "p.json: sound\n", "p.json: not a plan: x\n"), "no line of error"),
        (Run(0, "p.json: 2 findings (structure)\n", ""), "no verdict"),
        (Run(3, "", ""), "exit status 3"),
    ],
)
def test_the_harness_sees_a_broken_promise(run, expected):
    assert complaint(Path("p.json"), run) == expected
