"""What Slurm tells a process of the job step that it belongs to."""

import re
from collections.abc import Mapping

_PORTS = range(15000, 30000)  # below those that Linux hands out by itself


def is_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process. A batch script or an interactive shell has the job's variables only."""
    return "SLURM_STEP_NODELIST" in environment or "SLURM_STEP_NUM_TASKS" in environment


def num_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step, or of the job where there is no step; 1 outside Slurm.

    Raises:
        ValueError: the variable is no number.
    """
    return _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if "SLURM_PROCID" in environment else 1


def task(environment: Mapping[str, str]) -> int:
    """Number of this process among the tasks, from 0."""
    return _number(environment, "SLURM_PROCID")


def coordinator(environment: Mapping[str, str]) -> str:
    """HOST:PORT on the node of task 0, the same in all tasks of a step, and another one in another step or job.

    Raises:
        ValueError: Slurm's variables are missing or damaged.
    """
    nodes = expand_nodes(_value(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    job = _number(environment, "SLURM_JOB_ID", "SLURM_JOBID")
    step = _number(environment, "SLURM_STEP_ID") if "SLURM_STEP_ID" in environment else 0
    return f"{nodes[0]}:{_PORTS[(job + 997 * step) % len(_PORTS)]}"


def binds_gpus(environment: Mapping[str, str]) -> bool:
    """Whether Slurm itself gives each task GPUs of its own."""
    return any(environment.get(name) for name in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"))


def expand_nodes(text: str) -> list[str]:
    """The nodes of a list as Slurm writes it: "a[01-03,7],b" is a01, a02, a03, a7, b.

    Raises:
        ValueError: it is no such list.
    """
    parts = re.findall(r"(?:[^,\[\]\s]|\[[^\[\]]*\])+", text)
    if not parts or ",".join(parts) != text:
        raise ValueError(f"Expected a list of nodes as Slurm writes it, such as node[01-04,7]. Received: {text!r}")
    return [node for part in parts for node in _expand(part, text)]


def _expand(part: str, text: str) -> list[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    ranges, _, tail = rest.partition("]")
    tails = _expand(tail, text)
    return [head + number + end for number in _numbers(ranges, text) for end in tails]


def _numbers(ranges: str, text: str) -> list[str]:
    numbers = []
    for piece in ranges.split(","):
        first, dash, last = piece.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError(f"Expected numbers as in node[01-04,7]. Received: {piece!r} in {text!r}")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _value(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    raise ValueError(
        f"strategy=multi_worker in a Slurm job needs its variable {' or '.join(names)}; srun sets it. Received: nothing"
    )


def _number(environment: Mapping[str, str], *names: str) -> int:
    value = _value(environment, *names)
    if not value.isdecimal():
        raise ValueError(f"Slurm's variable {' or '.join(names)} must be a number. Received: {value!r}")
    return int(value)
