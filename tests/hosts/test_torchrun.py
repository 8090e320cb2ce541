"""`pipeval` under torchrun on several hosts: one result, and one line when it ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.cli import main
from tests.hosts.work import evaluate_once
from tests.support.hosts import Hosts, missing
from tests.support.paths import ROOT
from tests.support.ranks_on_hosts import RanksOnHosts
from tests.support.tiny_models import saved_llama

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.slow,
    pytest.mark.skipif(missing() != "", reason=missing()),
]

PATIENCE = 240.0
"""Seconds until everything has started and ended, on a machine that does much else."""

TEXT = "the quick brown fox\njumps over the lazy dog, 1234 times\n"
PAGE = (ROOT / "docs" / "how-to" / "hosts.md").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_llama(tmp_path_factory.mktemp("tiny-llama"))


def start(
    hosts: Hosts, processes: Sequence[int], model: Path, times: int, *more: str
) -> list["subprocess.Popen[str]"]:
    """The command of the page on each host, for so many processes there."""
    environment = {name: v for name, v in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    (_, line, *_) = PAGE.split("```")[1].replace("\\\n", "").strip().splitlines()
    (_, *words), *torchrun = shlex.split(line), sys.executable, "-m", "torch.distributed.run"
    assert words.pop(0) == "torchrun"
    text = model / f"{times}.txt"
    text.write_text(TEXT * times)
    told = {"node0": hosts.addresses[0], "DIRECTORY": str(model), "FILE": str(text)}
    options = {"--nnodes": len(processes), "--stages": sum(processes)}
    running = []
    for host, number in enumerate(processes):
        options |= {"--node-rank": host, "--nproc-per-node": number}
        given = [
            str(options[before]) if before in options else told.get(word, word)
            for before, word in zip(["", *words], words, strict=False)
        ]
        running.append(
            hosts.start(
                host,
                [*torchrun, *given, "--sequence-length", "16", *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
            )
        )
    return running


@pytest.mark.parametrize("processes", [(2, 1), (1, 1, 1)])
def test_torchrun_on_two_and_three_hosts_gives_the_loss_of_one(
    processes, model, monkeypatch, capsys
):
    with Hosts(len(processes)) as hosts:
        running = start(hosts, processes, model, 3, "--json")
        (found, errors), *others = [each.communicate(timeout=PATIENCE) for each in running]
    given = ["--model", str(model), "--text", str(model / "3.txt"), "--sequence-length", "16"]
    monkeypatch.setattr(
        sys, "argv", ["pipeval", *given, "--stages", "1", "--threads", "1", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    expected = capsys.readouterr().out
    assert ended.value.code == 0
    assert [each.returncode for each in running] == [0] * len(processes), errors
    assert json.loads(found)["loss"] == json.loads(expected)["loss"]
    assert [output for output, _ in others] == [""] * len(others)


def test_ctrl_c_on_one_of_two_hosts_is_one_line_on_each(model):
    with Hosts(2) as hosts:
        running = start(hosts, (1, 2), model, 3000)
        stream = running[0].stderr
        assert stream is not None
        while "loading the model" not in (line := stream.readline()):
            assert line, "it ended before it began"
        time.sleep(1.0)  # it is anywhere
        os.killpg(running[0].pid, signal.SIGINT)
        here, there = [each.communicate(timeout=PATIENCE)[1] for each in running]
        assert [hosts.processes(host) for host in (0, 1)] == [[], []]
    assert [line for line in here.splitlines() if "interrupted" in line] == ["pipeval: interrupted"]
    said = [line for line in there.splitlines() if line.startswith("pipeval: ")]
    said = [line for line in said if not line.startswith("pipeval: evaluating ")]
    assert len(said) == 1, there
    assert "stage 0" in said[0] or f"the store at {hosts.addresses[0]}" in said[0]


def test_an_interface_that_no_other_host_reaches_is_named():
    given = (evaluate_once, False)
    with Hosts(2) as hosts, RanksOnHosts(hosts, (0, 1), *given, GLOO_SOCKET_IFNAME="lo") as run:
        rank, ended = run.first_told()  # the other one waits to be connected to
        where = f"{hosts.addresses[0]}:29500 through the interface lo (GLOO_SOCKET_IFNAME): "
        assert ended.error == "LaunchError"
        assert ended.text.startswith(f"rank {rank} of 2 did not meet the others at {where}")
        assert "\n" not in ended.text


def test_the_example_of_the_page_runs():
    (_, example) = PAGE.split("```python\n")
    exec(example.partition("```")[0], {"Hosts": Hosts})


def test_tasks_of_slurm_on_two_hosts_meet_by_what_slurm_says(model):
    text = model / "slurm.txt"
    text.write_text(TEXT)
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_LOCALID": "0",
    }
    words = [sys.executable, "-m", "runtime", "--model", str(model), "--text", str(text)]
    words += ["--stages", "2", "--sequence-length", "16", "--json"]
    with Hosts(2) as hosts:
        step["SLURM_STEP_NODELIST"] = ",".join(hosts.addresses)
        running = []
        for task in ("0", "1"):
            environment = os.environ | step | {"SLURM_PROCID": task, "SLURM_NODEID": task}
            environment.pop("GLOO_SOCKET_IFNAME", None)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(hosts.start(int(task), words, env=environment, **pipes))
        found = [each.communicate(timeout=PATIENCE) for each in running]
    assert [each.returncode for each in running] == [0, 0], found
    assert json.loads(found[0][0])["threads"] == 3
    assert found[1][0] == ""
