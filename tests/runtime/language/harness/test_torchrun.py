"""The harness under torchrun, where every process runs it and is one stage."""

import json
import os
import subprocess
import sys

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from runtime.language.harness import NAME, register
from tests.support.harness_tasks import OF_OWN_TASKS, PERPLEXITY, answers
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
LIMIT = 3


def test_two_ranks_of_torchrun_give_the_answers_of_one_process(tiny_directory, tasks, tmp_path):
    arguments = f"pretrained={tiny_directory},threads=1,stages=2"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", OF_OWN_TASKS, "run", "--model", NAME, "--model_args", arguments),
        *("--tasks", PERPLEXITY, "--include_path", str(tasks), "--limit", str(LIMIT)),
        *("--output_path", str(tmp_path), "--log_samples"),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (samples,) = tmp_path.rglob("samples_*.jsonl")  # one rank writes them
    spread = list(answers(map(json.loads, samples.read_text().splitlines())))

    register()
    alone = lm_eval.simple_evaluate(
        model=NAME,
        model_args=f"pretrained={tiny_directory},threads=1",
        tasks=[PERPLEXITY],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        limit=LIMIT,
    )
    expected = list(answers(alone["samples"][PERPLEXITY]))
    assert len(expected) == LIMIT
    assert [float(answer) for answer in spread] == [float(answer) for answer in expected]
