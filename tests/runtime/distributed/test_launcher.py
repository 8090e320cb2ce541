"""Which launcher started a process, by what its environment says."""

import os
import sys

import pytest

from runtime.distributed.launch_environment import (
    LaunchError,
    cores_of_process,
    launched_process,
    processes_of_launcher,
)
from runtime.distributed.process_group import require_environment

MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
STEP = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "8", "SLURM_PROCID": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
PMI = {"PMI_SIZE": "2", "PMI_RANK": "0"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of launchers, in an environment that has no others."""

    def with_variables(variables: dict[str, str]) -> None:
        for name in list(os.environ):
            starts = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_", "MV2_")
            if name.startswith((*starts, "TORCHELASTIC_")):
                monkeypatch.delenv(name)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "")  # so that they are put back, whoever sets them
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return with_variables


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ("torchrun (WORLD_SIZE)", 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "1"}, None),
        (SLURM, ("Slurm (SLURM_NTASKS)", 2)),
        (STEP, ("Slurm (SLURM_STEP_NUM_TASKS)", 3)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # the shell of an allocation
        ({"SLURM_PROCID": "0"}, None),  # a batch script that asked for no number of tasks
        (OPEN_MPI, ("Open MPI (OMPI_COMM_WORLD_SIZE)", 4)),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "0"}, ("MVAPICH", 2)),
        (PMI, ("MPI (PMI_SIZE)", 2)),
        ({**SLURM, **OPEN_MPI}, ("Open MPI (OMPI_COMM_WORLD_SIZE)", 4)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "5"}, ("torchrun (WORLD_SIZE)", 5)),
    ],
)
def test_processes_that_a_launcher_started_together_are_told(variables, told, environment):
    environment(variables)
    found = processes_of_launcher()
    assert (found is None) == (told is None)
    if found and told:
        assert found[0].startswith(told[0])
        assert found[1] == told[1]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set, needed a number (torchrun sets it)"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, needed a number (torchrun sets it)"),
        ({"LOCAL_RANK": "1"}, "RANK is not set"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "RANK is not set"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK is 'a', needed a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', needed a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "?"}, "LOCAL_RANK is '?'"),
        ({"SLURM_PROCID": "1"}, "SLURM_NTASKS is not set, needed a number (Slurm sets it)"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "2"}, "SLURM_PROCID is 2 and SLURM_NTASKS 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set"),
        ({"PMI_RANK": "0"}, "PMI_SIZE is not set"),
    ],
)
def test_half_of_a_launchers_variables_is_one_sentence(variables, message, environment):
    environment(variables)
    with pytest.raises(LaunchError) as caught:
        processes_of_launcher()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variables", [SLURM, STEP, OPEN_MPI, PMI])
def test_processes_that_cannot_meet_are_no_run(variables, environment):
    environment(variables)
    with pytest.raises(LaunchError, match="can be one run only where MASTER_ADDR and MASTER_PORT"):
        require_environment()


def test_tasks_that_know_where_to_meet_are_the_ranks_of_one_run(environment):
    environment({**SLURM, "SLURM_LOCALID": "1", **MEETING})
    found = launched_process()
    assert found is not None
    assert (found.rank, found.processes, found.local_rank, found.local_processes) == (1, 2, 1, 2)
    require_environment(2)
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["1", "2", "1"]
    assert processes_of_launcher() == ("torchrun (WORLD_SIZE)", 2)


IN_A_STEP = {
    **STEP,
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


def test_tasks_of_a_step_of_slurm_meet_on_its_first_host(environment):
    environment(IN_A_STEP)
    require_environment(3)
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [os.environ[name] for name in names] == ["gpu07", "27110", "2", "3", "0", "1"]


def test_a_place_to_meet_that_was_given_counts_more_than_that_of_slurm(environment):
    environment({**IN_A_STEP, **MEETING})
    require_environment(3)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("localhost", "29500")


def test_a_batch_script_of_several_tasks_is_no_step_and_meets_nobody(environment):
    environment({**SLURM, "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu[07-08]"})
    with pytest.raises(LaunchError, match="can be one run only where MASTER_ADDR and MASTER_PORT"):
        require_environment()


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 8),  # 16 for two processes
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"RANK": "5", "WORLD_SIZE": "8"}, 2),  # all may be here
        (IN_A_STEP, 16),
        ({**IN_A_STEP, "SLURM_NODEID": "0"}, 8),
        ({**IN_A_STEP, "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"RANK": "0", "WORLD_SIZE": "64", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "64"}, 1),
    ],
)
def test_the_cores_of_a_host_are_shared_by_the_processes_on_it(
    variables, cores, environment, monkeypatch
):
    environment(variables)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cores_of_process(2) == cores


def test_a_launcher_that_started_another_number_than_there_are_stages_is_refused(environment):
    environment({**SLURM, **MEETING})
    with pytest.raises(LaunchError, match=r"3 stages, but .* 2 processes \(SLURM_NTASKS\)"):
        require_environment(3)
