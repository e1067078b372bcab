"""Who the workers of a run are, before TensorFlow starts."""

import json
import socket
import threading

import pytest
from fixtures.worker_processes import free_addresses, tf_config

from keras_mae.training import rendezvous, slurm
from keras_mae.training.cluster import Cluster, Summons, WorkerFlags, find_workers, gather_workers, own_gpus
from keras_mae.training.rendezvous import Greeting, MissingWorkers, meet

NOTHING = WorkerFlags()


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("gpu", ["gpu"]),
        ("node[01-04,7]", ["node01", "node02", "node03", "node04", "node7"]),
        ("a1,b[2-3],c", ["a1", "b2", "b3", "c"]),
        ("node[098-101]", ["node098", "node099", "node100", "node101"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_slurm_node_lists_are_expanded(text, nodes):
    assert slurm.expand_nodes(text) == nodes


@pytest.mark.parametrize("text", ["", "node[1-", "node[4-1]", "node[a-c]", "a,,b", "a b", "node]1["])
def test_damaged_node_lists_are_refused(text):
    with pytest.raises(ValueError, match="Received"):
        slurm.expand_nodes(text)


def slurm_task(number, **others):
    """Variables of a task of four on the nodes n07 and n08, as srun sets them."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "n[01-09]",
        "SLURM_NTASKS": "9",
        "SLURM_PROCID": str(number),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n[07-08]",
        "SLURM_STEP_NUM_TASKS": "4",
        **others,
    }


def test_tasks_of_a_slurm_step_meet_on_its_first_node():
    found = [find_workers(slurm_task(number), NOTHING) for number in range(4)]
    assert {task.coordinator for task in found} == {"n07:19242"}  # 15000 + 4242
    assert [(task.process, task.num_processes) for task in found] == [(number, 4) for number in range(4)]


def test_steps_and_jobs_of_slurm_meet_at_other_ports():
    coordinators = {
        find_workers(slurm_task(0, SLURM_JOB_ID=str(4242 + job), SLURM_STEP_ID=str(step)), NOTHING).coordinator
        for job in range(3)
        for step in range(3)
    }
    assert len(coordinators) == 9


def test_a_slurm_job_without_step_variables_is_taken_by_its_own():
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[3-4]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    assert find_workers(environment, NOTHING) == Summons("Slurm", "a3:15007", 1, 2)
    assert not slurm.is_step(environment) and slurm.is_step(slurm_task(0))


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ({"SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": ""}, "SLURM_STEP_NODELIST or SLURM_JOB_NODELIST"),
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID"),
        ({"SLURM_PROCID": "two"}, "SLURM_PROCID must be a number. Received: 'two'"),
    ],
)
def test_damaged_slurm_variables_are_named(missing, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_workers(slurm_task(0, **missing), NOTHING)


def test_one_task_of_slurm_is_no_cluster():
    assert find_workers(slurm_task(0, SLURM_STEP_NUM_TASKS="1"), NOTHING) is None


def test_tf_config_counts_its_chief_as_worker_0():
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    for kind, index, process in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        config = json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
        summons = find_workers({"TF_CONFIG": config}, NOTHING)
        assert summons == Summons("TF_CONFIG", "c:1", process, 3, ("c:1", "a:1", "b:1"))


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}',
        '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:70000"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
    ],
)
def test_a_tf_config_that_names_no_workers_is_refused(config):
    with pytest.raises(ValueError, match="TF_CONFIG does not say who the workers are.*Received"):
        find_workers({"TF_CONFIG": config}, NOTHING)


def test_the_command_line_goes_before_tf_config_and_that_before_slurm():
    environment = {**slurm_task(0), "TF_CONFIG": tf_config(["a:1", "b:1"], 1)}
    assert find_workers(environment, WorkerFlags("h:5", 3, 2)) == Summons("--coordinator", "h:5", 2, 3)
    assert find_workers(environment, NOTHING).source == "TF_CONFIG"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (WorkerFlags(coordinator="h:5"), "belong together"),
        (WorkerFlags(num_processes=2, process_id=0), "belong together"),
        (WorkerFlags("h", 2, 0), "HOST:PORT"),
        (WorkerFlags("::1:5", 2, 0), "HOST:PORT"),
        (WorkerFlags("h:5", 2, 2), "from 0 to num_processes - 1"),
        (WorkerFlags("h:5", 2, -1), "from 0 to num_processes - 1"),
    ],
)
def test_incomplete_coordinators_are_refused(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_workers({}, flags)


def test_addresses_may_be_of_ipv6():
    assert rendezvous.split_address("[fe80::1]:77") == ("fe80::1", 77)


def gathered(summonses, seconds=20.0):
    """What each process gets when all of them meet, in threads: a `Cluster` or a sentence."""
    results = [None] * len(summonses)

    def run(place):
        try:
            results[place] = gather_workers(summonses[place], seconds)
        except MissingWorkers as error:
            results[place] = str(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(summonses))]
    for thread in reversed(threads):  # process 0 comes last
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def coordinated(num_processes, *process_ids):
    coordinator = free_addresses(1)[0]
    return [Summons("--coordinator", coordinator, process_id, num_processes) for process_id in process_ids]


def test_processes_that_know_the_coordinator_learn_all_addresses():
    clusters = gathered(coordinated(4, 0, 1, 2, 3))
    assert len({cluster.addresses for cluster in clusters}) == 1
    addresses = clusters[0].addresses
    assert len(set(addresses)) == 4 and all(address.startswith("localhost:") for address in addresses)
    assert [cluster.worker for cluster in clusters] == [0, 1, 2, 3]


def test_processes_of_one_machine_share_its_gpus():
    clusters = gathered(coordinated(2, 0, 1))
    assert [(cluster.place, cluster.sharing) for cluster in clusters] == [(0, 2), (1, 2)]
    assert [own_gpus(cluster, ["a", "b", "c", "d"]) for cluster in clusters] == [["a", "b"], ["c", "d"]]
    assert own_gpus(clusters[1], ["only"]) == ["only"]
    with pytest.raises(ValueError, match="2 workers share this machine.*Received: 3 GPUs"):
        own_gpus(clusters[0], ["a", "b", "c"])


def test_tasks_to_which_slurm_gave_gpus_keep_them_all():
    environments = [slurm_task(number, SLURM_GPUS_PER_TASK="2") for number in range(2)]
    summonses = [find_workers({**e, "SLURM_STEP_NUM_TASKS": "2"}, NOTHING) for e in environments]
    here = free_addresses(1)[0]
    clusters = gathered([Summons("Slurm", here, s.process, 2, has_own_gpus=s.has_own_gpus) for s in summonses])
    assert [own_gpus(cluster, ["a", "b"]) for cluster in clusters] == [["a", "b"], ["a", "b"]]


def test_addresses_of_tf_config_stay_as_they_are():
    addresses = free_addresses(2)
    found = [find_workers({"TF_CONFIG": tf_config(addresses, worker)}, NOTHING) for worker in range(2)]
    assert [cluster.addresses for cluster in gathered(found)] == [tuple(addresses)] * 2


def test_all_that_came_are_told_who_is_missing():
    sentences = gathered(coordinated(4, 0, 2), seconds=1.0)
    assert sentences[0] == sentences[1]
    assert sentences[0].startswith("Of 4 processes, 1, 3 did not come within 1 s.")


def test_a_process_that_finds_no_process_0_says_where_it_looked():
    (summons,) = coordinated(2, 1)
    with pytest.raises(MissingWorkers, match=f"found no process 0 at {summons.coordinator} within 1 s .*refused"):
        gather_workers(summons, 1.0)


def test_two_processes_of_one_id_are_refused():
    sentences = gathered(coordinated(3, 0, 1, 1), seconds=20.0)
    assert sentences == ["Two processes have the id 1: each needs its own, from 0 to 2."] * 3


def test_processes_that_expect_other_workers_are_refused():
    first, second = coordinated(2, 0, 1)
    second = Summons(second.source, second.coordinator, 1, 3)
    sentences = gathered([first, second])
    assert sentences[0] == sentences[1]
    assert "Process 0 expects 2 processes, process 1 3 processes" in sentences[0]


def test_strangers_do_not_disturb_the_meeting():
    first, second = coordinated(2, 0, 1)
    results = []
    thread = threading.Thread(target=lambda: results.append(gather_workers(first, 20.0)), daemon=True)
    thread.start()
    host, port = rendezvous.split_address(first.coordinator)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": 1}\n', b""):
        stranger = connected(host, port)
        stranger.sendall(words)
        stranger.close()
    cluster = gather_workers(second, 20.0)
    thread.join(30)
    assert results[0].addresses == cluster.addresses


def test_a_process_that_is_started_again_while_others_are_missing_takes_its_place():
    coordinator = free_addresses(1)[0]
    host, port = rendezvous.split_address(coordinator)
    results = []
    first = Summons("--coordinator", coordinator, 0, 3)
    thread = threading.Thread(target=lambda: results.append(gather_workers(first, 20.0)), daemon=True)
    thread.start()
    killed = connected(host, port)
    killed.sendall(rendezvous._line({**vars(Greeting(1, 3, (), 9, "gone")), "addresses": []}))
    killed.close()
    again = gathered([Summons("--coordinator", coordinator, number, 3) for number in (1, 2)])
    thread.join(30)
    assert isinstance(results[0], Cluster)
    assert [cluster.addresses for cluster in again] == [results[0].addresses] * 2
    assert not any(address.endswith(":9") for address in results[0].addresses)


def test_a_coordinator_whose_port_is_taken_says_so():
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(MissingWorkers, match=f"cannot listen at port {port} of this machine: .*in use"):
            meet(f"localhost:{port}", Greeting(0, 2, (), 1, ""), 1.0)


def connected(host, port):
    """A connection to a listener that is just about to start."""
    for _ in range(200):
        try:
            return socket.create_connection((host, port), timeout=1)
        except OSError:
            threading.Event().wait(0.05)
    raise AssertionError(f"nothing listens at {host}:{port}")
