"""A schedule of one's own: a placement and a picture; everything else is derived.

Run it:  python examples/own_schedule.py [FILE.html]

It prints the steps of a schedule that goes around the ranks lap by lap, and the verdict. With
FILE.html it draws the ranks over time there; open the file in a browser.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import schedcc
from schedcc.pictures.page import page
from schedcc.pictures.planned import plan_panel


class Looped:
    """Stages `r`, `r + R`, `r + 2 R`, ... on rank `r`; a lap begins when all of the last is on."""

    name = "looped"

    def placement(self, stages: int, ranks: int) -> list[int]:
        """The rank of each stage."""
        return [stage % ranks for stage in range(stages)]

    def forwards(
        self, micro_batches: int, stages: int, ranks: int
    ) -> Iterator[tuple[int, int, int]]:
        """`(step, stage, micro_batch)` of every forward."""
        for stage in range(stages):
            lap, rank = divmod(stage, ranks)
            for m in range(micro_batches):
                yield lap * max(micro_batches, ranks) + rank + m, stage, m


def main() -> None:
    """Compile it, show it and draw it."""
    plan = schedcc.compile_pipeline(3, 4, schedule=Looped(), ranks=2)
    for program in plan.programs:
        print(f"rank {program.rank}")
        for number, step in enumerate(program.steps):
            print(f"  step {number}:", *(i.op for i in step))
    print("sound:", schedcc.check(plan).ok)
    if sys.argv[1:]:
        panel = plan_panel(plan, schedcc.Costs(transfer=0.25))
        Path(sys.argv[1]).write_text(page(panel.title, [panel]), encoding="utf-8")


if __name__ == "__main__":
    main()
