"""Whole tasks of the harness, answer by answer beside its own backend `hf` on the same files."""

import json
import sys
from importlib import import_module

import lm_eval
import pytest
import torch
import torch.distributed as dist
from lm_eval.tasks import TaskManager

from runtime.distributed.processes import launch
from runtime.language.harness import NAME, register
from tests.support import harness_of_own_tasks
from tests.support.forks import Program
from tests.support.harness_tasks import CHOICE, GENERATION, PERPLEXITY, TASKS, answers

pytestmark = pytest.mark.slow


def evaluated(model, tasks, **model_args):
    register()
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        batch_size=4,
        log_samples=True,
    )
    return found["results"], {name: list(answers(found["samples"][name])) for name in TASKS}


@pytest.fixture(scope="module")
def of_hf(tiny_directory, tasks):
    return evaluated("hf", tasks, pretrained=tiny_directory, device="cpu")


def require_same(found, wanted):
    assert {name: len(wanted[1][name]) for name in TASKS} == {
        PERPLEXITY: 12,
        CHOICE: 240,
        GENERATION: 6,
    }
    for name in TASKS:
        for ours, theirs in zip(found[1][name], wanted[1][name], strict=True):
            if name == PERPLEXITY:
                assert ours == pytest.approx(theirs, rel=1e-6)
            elif name == CHOICE:
                assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
                assert bool(ours[1]) == bool(theirs[1])
            else:
                assert ours == theirs
        for metric, value in wanted[0][name].items():
            if isinstance(value, float):
                assert found[0][name][metric] == pytest.approx(value, rel=1e-5), metric


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_alone_the_harness_gets_what_it_gets_from_hf(tiny_directory, tasks, of_hf, stages):
    found = evaluated(NAME, tasks, pretrained=tiny_directory, stages=stages, threads=1)
    require_same(found, of_hf)
    assert len(set(found[1][GENERATION])) > 1
    assert not dist.is_initialized()


def run_on_four_ranks(words):
    import_module("lm_eval.__main__")  # once for all
    launch(4, run_harness, words, start_method="fork")


def run_harness(words):
    torch.set_num_threads(1)
    sys.argv = ["lm_eval", *words]
    harness_of_own_tasks.main()


def test_under_a_launcher_replicas_share_the_requests(tiny_directory, tasks, of_hf, tmp_path):
    words = [
        *("run", "--model", NAME),
        *("--model_args", f"pretrained={tiny_directory},stages=2,threads=1"),
        *("--tasks", *TASKS, "--include_path", str(tasks), "--batch_size", "auto"),
        *("--output_path", str(tmp_path), "--log_samples"),
    ]
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = Program(run_on_four_ranks, words, environment=offline).ended()
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count(f"{NAME} (") == 1  # one process writes
    (results,) = tmp_path.rglob("results_*.json")
    written = json.loads(results.read_text())
    assert (written["config"]["stages"], written["config"]["replicas"]) == (2, 2)
    responses = {}
    for name in TASKS:
        (samples,) = tmp_path.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        responses[name] = [_plain(answer) for answer in answers(lines)]
    require_same((written["results"], responses), of_hf)


def _plain(answer):
    """An answer as it was before the harness wrote it down as text."""
    if isinstance(answer, list):
        return float(answer[0]), answer[1] in (True, "True")
    try:
        return float(answer)
    except ValueError:
        return answer
