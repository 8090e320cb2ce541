"""What `docs/how-to/schedules.md` says in words; its blocks are run by `tests/docs`."""

import re

import schedcc
from runtime import Evaluator
from schedcc.schedules import SCHEDULES
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "schedules.md").read_text()


def test_a_schedule_of_ones_own_is_checked_drawn_simulated_and_run_in_under_15_lines():
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Looped" in b]
    lines = [line for line in block.splitlines() if line and not re.match("import|from", line)]
    assert len(lines) < 15


def test_the_table_of_schedules_is_true():
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"| `{schedule.name}`" for schedule in SCHEDULES]
    for schedule, (_, _, steps, buffers, _) in zip(SCHEDULES, rows, strict=True):
        stages = 4 if schedule.name == "inference" else 8
        plan = schedcc.compile_pipeline(8, stages, schedule=schedule, ranks=4)
        forwards = [
            n
            for program in plan.programs
            for n, step in enumerate(program.steps)
            if any(i.op == "ForwardPass" for i in step)
        ]
        assert max(forwards) + 1 == value(steps), schedule
        assert plan.num_buffers == value(buffers), schedule
    assert Evaluator.__init__.__kwdefaults__["schedule"] == "inference"


def value(formula: str) -> int:
    """Of 8 micro-batches, 4 ranks and 2 stages on each: `v M + R - 1, if ...` is 19."""
    product = re.sub(r"(\w) (?=\w)", r"\1 * ", formula.partition(",")[0])
    return int(eval(product, {"M": 8, "R": 4, "v": 2}))
