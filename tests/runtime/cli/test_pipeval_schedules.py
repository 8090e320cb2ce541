"""`pipeval` with schedules that put several stages on a rank, and with plans from files."""

from pathlib import Path

import pytest

import schedcc
from schedcc.io.exchange import to_torch_csv
from tests.runtime.cli.test_pipeval import arguments, evaluate, in_this_process, of_program
from tests.runtime.cli.test_pipeval import model as model  # fixtures
from tests.runtime.cli.test_pipeval import text as text
from tests.support.own_schedules import Listed

INTERLEAVED = {"schedule": "interleaved", "ranks": 2}


@pytest.mark.slow
def test_schedules_and_plans_give_the_loss_of_one_process(model, text, tmp_path):
    own = [*arguments(model, text), "--verify"]
    found = evaluate(*own, "--schedule", "interleaved", "--ranks", 2)
    assert found.verification is not None
    assert found.verification.passed
    assert (found.schedule, found.stages, found.ranks) == ("interleaved", 2 * 2, 2)
    assert found.placement == (0, 1, 0, 1)
    assert (found.variant, found.channels, found.dtype) == ("overlapped", "memory", "float32")
    assert found.version == schedcc.__version__
    assert [summary.stages for summary in found.stage_summaries] == [(0, 2), (1, 3)]
    assert sum(summary.layers for summary in found.stage_summaries) == 5

    there_and_back = schedcc.compile_pipeline(2, 4, schedule="v_shape", ranks=2)
    (tmp_path / "plan.csv").write_text(to_torch_csv(there_and_back))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    given = ["-m", "runtime", *own, "--plan", tmp_path / "plan.csv", "--channels", "shared"]
    from_torch = of_program(*torchrun, *given)
    assert from_torch.loss == found.loss
    assert (from_torch.schedule, from_torch.placement) == ("torch", (0, 1, 1, 0))
    assert (from_torch.variant, from_torch.channels) == ("overlapped", "shared")

    backwards = schedcc.compile_pipeline(3, 3, schedule=Listed((1, 0, 1), 5), ranks=2)
    (tmp_path / "plan.json").write_text(backwards.model_dump_json())
    read = evaluate(*own, "--plan", tmp_path / "plan.json")
    assert read.verification is not None
    assert read.verification.passed
    assert (read.loss, read.variant, read.ranks) == (found.loss, "blocking", 2)


def test_what_does_not_go_together_is_refused_in_one_sentence(model, text, tmp_path, capsys):
    plan = schedcc.compile_pipeline(2, 4, **INTERLEAVED)
    sound, alone, unsound = (tmp_path / f"{name}.json" for name in ("sound", "alone", "unsound"))
    sound.write_text(plan.model_dump_json())
    alone.write_text(plan.rank(1).model_dump_json())
    first, *others = plan.programs
    empty = first.model_copy(update={"steps": ()})
    broken = plan.model_copy(update={"programs": (empty, *others)})
    unsound.write_text(broken.model_dump_json())

    def told(*options: object) -> str:
        words = map(str, [*arguments(model, text), *options])
        status, errors = in_this_process([*words], capsys)
        assert status == 2
        return errors

    assert "needed one of them" in told("--plan", sound, "--schedule", "inference")
    assert "stages is 3, but the plan is for 4" in told("--plan", sound, "--stages", 3)
    assert "the plan is for 2 ranks, but there are 3" in told("--plan", sound, "--ranks", 3)
    assert "the plan of rank 1 alone, needed all ranks" in told("--plan", alone)
    assert "coverage" in told("--plan", unsound)
    assert "v_shape needs two stages on each rank" in told(
        "--schedule", "v_shape", "--ranks", 2, "--stages", 3
    )
    assert "needed one of 'inference', 'interleaved'" in told("--schedule", "zigzag")
    assert "6 stages for the 5 layers" in told("--schedule", "interleaved", "-R", 3)
    assert told("--plan", Path("missing.csv")).count("\n") == 1
