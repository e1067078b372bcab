"""Who the workers of a run are: named by TF_CONFIG, by Slurm, or by --coordinator, --num_processes and --process_id.

All ways end in the same `Cluster`. Worker 0 is the chief, which writes the files.
"""

import dataclasses
import json
import os
import socket
from collections.abc import Mapping

from keras_mae.training import rendezvous, slurm

EXAMPLE = (
    '{"cluster": {"worker": ["HOST0:PORT", "HOST1:PORT"]}, "task": {"type": "worker", "index": 0}}'
    " on the first of two hosts"
)


@dataclasses.dataclass(frozen=True)
class Summons:
    """What a process knows of the workers before it has met them.

    Attributes:
        source: what named them, for messages.
        coordinator: HOST:PORT at which process 0 can be reached by all.
        process: number of this process, from 0.
        num_processes: this one included.
        addresses: HOST:PORT of all, where they are known already; else empty.
        has_own_gpus: whether the GPUs that this process sees are not another's too.
    """

    source: str
    coordinator: str
    process: int
    num_processes: int
    addresses: tuple[str, ...] = ()
    has_own_gpus: bool = False


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: HOST:PORT of each, the same in all of them.
        worker: number of this one, from 0.
        place: number of this one among those that share its machine's GPUs, from 0.
        sharing: how many share them.
    """

    addresses: tuple[str, ...]
    worker: int
    place: int = 0
    sharing: int = 1


@dataclasses.dataclass(frozen=True)
class WorkerFlags:
    """What the command line says of the workers.

    Attributes:
        coordinator: HOST:PORT at which process 0 can be reached by all.
        num_processes: number of workers.
        process_id: number of this one, from 0.
        wait_seconds: for the others to start.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    wait_seconds: float = rendezvous.WAIT_SECONDS

    def is_given(self) -> bool:
        """Whether they name workers, or try to."""
        return (self.coordinator, self.num_processes, self.process_id) != (None, None, None)


def find_workers(environment: Mapping[str, str], given: WorkerFlags) -> Summons | None:
    """Reads who the workers are; the command line goes before TF_CONFIG, and that before Slurm's variables.

    Args:
        environment: variables of this process.
        given: on the command line.

    Returns:
        None where nothing names workers.

    Raises:
        ValueError: what names them is incomplete or damaged.
    """
    if given.is_given():
        return _from_coordinator(given.coordinator, given.num_processes, given.process_id)
    if environment.get("TF_CONFIG"):
        return _from_tf_config(environment["TF_CONFIG"])
    if slurm.num_tasks(environment) > 1:
        return Summons(
            "Slurm",
            slurm.coordinator(environment),
            slurm.task(environment),
            slurm.num_tasks(environment),
            has_own_gpus=slurm.binds_gpus(environment),
        )
    return None


def gather_workers(summons: Summons, wait_seconds: float = rendezvous.WAIT_SECONDS) -> Cluster:
    """Waits for all workers.

    Raises:
        MissingWorkers: not all have come; all that came raise it.
    """
    machine = f"{socket.gethostname()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
    greeting = rendezvous.Greeting(
        process=summons.process,
        num_processes=summons.num_processes,
        addresses=summons.addresses,
        port=0 if summons.addresses else rendezvous.free_port(),
        devices=f"{machine} {summons.process}" if summons.has_own_gpus else machine,
    )
    meeting = rendezvous.meet(summons.coordinator, greeting, wait_seconds)
    sharing = [process for process, devices in enumerate(meeting.devices) if devices == greeting.devices]
    return Cluster(meeting.addresses, summons.process, sharing.index(summons.process), len(sharing))


def own_gpus(cluster: Cluster, gpus: list) -> list:
    """Of the GPUs that several workers of one machine see, an equal share for this one.

    Args:
        cluster: of the run.
        gpus: all that this process sees; a single one is taken to be its own.

    Raises:
        ValueError: they cannot be shared out evenly.
    """
    if cluster.sharing == 1 or len(gpus) <= 1:
        return gpus
    if len(gpus) % cluster.sharing:
        raise ValueError(
            f"{cluster.sharing} workers share this machine, whose GPUs are split evenly over them. "
            f"Received: {len(gpus)} GPUs"
        )
    count = len(gpus) // cluster.sharing
    return gpus[cluster.place * count : (cluster.place + 1) * count]


def _from_coordinator(coordinator, num_processes, process_id) -> Summons:
    if None in (coordinator, num_processes, process_id):
        raise ValueError(
            "coordinator, num_processes and process_id belong together. Expected, on the second of four machines: "
            "--coordinator=HOST0:PORT --num_processes=4 --process_id=1. "
            f"Received: coordinator={coordinator}, num_processes={num_processes}, process_id={process_id}"
        )
    rendezvous.split_address(coordinator)
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            "process_id counts the processes from 0 to num_processes - 1. "
            f"Received: num_processes={num_processes}, process_id={process_id}"
        )
    return Summons("--coordinator", coordinator, process_id, num_processes)


def _from_tf_config(config: str) -> Summons:
    try:
        content = json.loads(config)
        kind, index = content["task"]["type"], content["task"]["index"]
        jobs = {name: tuple(content["cluster"].get(name, ())) for name in ("chief", "worker")}
        if set(content["cluster"]) - set(jobs) or len(jobs["chief"]) > 1 or not isinstance(index, int):
            raise ValueError
        addresses = jobs["chief"] + jobs["worker"]
        process = index + (len(jobs["chief"]) if kind == "worker" else 0)
        if not 0 <= index < len(jobs[kind]) or len(set(addresses)) < len(addresses):
            raise ValueError
        for address in addresses:
            rendezvous.split_address(address)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise ValueError(
            "The environment variable TF_CONFIG does not say who the workers are. It takes the addresses of a chief "
            f"and workers, all different, and one of them as its task. Expected: {EXAMPLE}. Received: {config}"
        ) from None
    return Summons("TF_CONFIG", addresses[0], process, len(addresses), addresses)
