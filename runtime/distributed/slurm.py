"""What Slurm says of a step's hosts: where rank 0 is, and how many tasks each host has.

The variables are described under "OUTPUT ENVIRONMENT VARIABLES" in srun(1).
"""

import re
from collections.abc import Mapping

FIRST_PORT, PORTS = 20_000, 10_000
"""Where the steps of a cluster meet: below the ports that systems give to anybody."""

_ITEM = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_RANGE = re.compile(r"\[([^\],-]+)[^\]]*\]")


def first_host(hosts: str) -> str:
    """The first of a list of hosts, which has task 0; empty if the list is.

    >>> first_host("gpu[03-07,11],login1"), first_host("rack[2-3]-node[08-09]"), first_host("a,b")
    ('gpu03', 'rack2-node08', 'a')
    """
    item = _ITEM.match(hosts)
    return "" if item is None else _RANGE.sub(r"\1", item.group())


def tasks_of_host(tasks: str, host: int) -> int | None:
    """The number of tasks of one host, by its place in the step; `None` if it is not told.

    >>> tasks_of_host("2(x3),1", 2), tasks_of_host("2(x3),1", 3), tasks_of_host("2(x3),1", 4)
    (2, 1, None)
    """
    counts: list[int] = []
    for item in tasks.split(","):
        number = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if number is None:
            return None
        counts += [int(number[1])] * int(number[2] or 1)
    return counts[host] if host < len(counts) else None


def meeting_place(environment: Mapping[str, str]) -> dict[str, str]:
    """`MASTER_ADDR` and `MASTER_PORT` of a step, as far as the environment says them.

    The port is one that the step reserved (`srun --resv-ports`), or follows from the numbers of the
    job and the step. A batch script is no step, and has no others to meet.

    >>> step = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2"}
    >>> meeting_place(step)
    {'MASTER_ADDR': 'n1', 'MASTER_PORT': '27112'}
    """
    host = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not host:
        return {}
    numbers = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    reserved = re.match(r"\d+", environment.get("SLURM_STEP_RESV_PORTS", ""))
    if reserved is not None:
        return {"MASTER_ADDR": host, "MASTER_PORT": reserved.group()}
    if not all(number.isdecimal() for number in numbers):
        return {"MASTER_ADDR": host}
    job, step = map(int, numbers)
    return {"MASTER_ADDR": host, "MASTER_PORT": str(FIRST_PORT + (10 * job + step) % PORTS)}
