"""What `docs/how-to/schedules.md` shows is true."""

import re
from typing import Any

import rich
from torch import nn

from runtime import Evaluator
from tests.support.models_for_tests import batches, mlp, one_process
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "how-to" / "schedules.md").read_text()


def test_a_stranger_has_a_schedule_drawn_checked_simulated_and_run_in_under_15_lines(
    capsys, monkeypatch
):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Looped" in b]
    lines = [line for line in block.splitlines() if line and not re.match("import|from", line)]
    assert len(lines) < 15
    data = batches([2] * 8)
    names: dict[str, Any] = {"layers": mlp(8), "data": data, "loss_fn": nn.functional.mse_loss}
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(rich, "_console", None)  # it knows its width since it was made
    exec(block, names)
    losses = one_process(mlp(8), data)[1]
    printed = capsys.readouterr().out
    assert "F0" in printed
    assert "True" in printed
    assert printed.count(repr(sum(losses) / len(losses))[:10]) == 2
    assert "seconds" in printed


def test_the_table_of_schedules_is_true():
    import schedcc

    for name, stages, steps, buffers in (
        ("inference", 4, 8 + 4 - 1, 2),
        ("interleaved", 8, 2 * 8 + 4 - 1, 2),
        ("v_shape", 8, 2 * 8 + 2 * 4 - 2, 1),
    ):
        plan = schedcc.compile_pipeline(8, stages, schedule=name, ranks=4)
        assert f"| `{name}` |" in PAGE
        forwards = [
            n
            for program in plan.programs
            for n, step in enumerate(program.steps)
            if any(i.op == "ForwardPass" for i in step)
        ]
        assert max(forwards) + 1 == steps
        assert plan.num_buffers == buffers
    assert Evaluator.__init__.__kwdefaults__["schedule"] == "inference"
