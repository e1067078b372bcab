"""How processes that know one common address learn each other's, before TensorFlow starts.

MultiWorkerMirroredStrategy wants the address of every worker in every process, waits for ever for one that is missing,
and does not say which. Here process 0 listens at the common address, the others greet it, and all get the list; or all
that came get one sentence that says who did not. A message is one line of JSON.
"""

import contextlib
import dataclasses
import ipaddress
import json
import select
import socket
import sys
import time

WAIT_SECONDS = 600.0
_GREETING_SECONDS = 5.0  # for one line from whoever connects, which may be a stranger
_QUIET_SECONDS = 10.0  # for process 0 to start, before a word is said about it
_LONGEST = 65536  # characters of a line


class MissingWorkers(ValueError):
    """Not all processes of a run have come together."""


@dataclasses.dataclass(frozen=True)
class Greeting:
    """What a process says of itself.

    Attributes:
        process: its number, from 0.
        num_processes: how many it expects, itself included.
        addresses: HOST:PORT of all, where they are known already; else empty.
        port: where its TensorFlow will listen, where addresses are not known.
        devices: processes of the same text share their GPUs.
    """

    process: int
    num_processes: int
    addresses: tuple[str, ...]
    port: int
    devices: str


@dataclasses.dataclass(frozen=True)
class Meeting:
    """What all processes know in the end.

    Attributes:
        addresses: HOST:PORT of each process.
        devices: the text of each process's greeting.
    """

    addresses: tuple[str, ...]
    devices: tuple[str, ...]


def meet(coordinator: str, greeting: Greeting, wait_seconds: float = WAIT_SECONDS) -> Meeting:
    """Waits until all processes have come.

    Args:
        coordinator: HOST:PORT at which process 0 can be reached by all.
        greeting: of this process.
        wait_seconds: until giving up.

    Raises:
        MissingWorkers: a process is missing, comes twice, or expects other processes; all that came raise it.
    """
    host, port = split_address(coordinator)
    deadline = time.monotonic() + wait_seconds
    if greeting.process == 0:
        return _receive(host, port, greeting, deadline, wait_seconds)
    return _greet(host, port, greeting, deadline, wait_seconds)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[IPv6]:PORT".

    Raises:
        ValueError: it is no such address.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"Expected an address HOST:PORT with a port from 1 to 65535. Received: {address!r}")
    return bare, int(port)


def free_port() -> int:
    """A port that nothing on this machine listens at."""
    with _listen(0) as listener:
        return listener.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class _Arrival:
    # A process that has greeted process 0; its connection is None for process 0 itself.
    greeting: Greeting
    address: str
    connection: socket.socket | None = None


def _receive(host: str, port: int, own: Greeting, deadline: float, wait_seconds: float) -> Meeting:
    # Process 0.
    try:
        listener = _listen(port)
    except OSError as error:
        raise MissingWorkers(f"Process 0 cannot listen at port {port} of this machine: {error.strerror}.") from None
    print(f"waiting for {own.num_processes - 1} other process(es) at {host}:{port}", file=sys.stderr, flush=True)
    arrived = {0: _Arrival(own, own.addresses[0] if own.addresses else _join(host, own.port))}
    with listener, contextlib.ExitStack() as stack:
        while len(arrived) < own.num_processes:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                _refuse(arrived, _missing_sentence(arrived, own.num_processes, wait_seconds))
            stack.callback(connection.close)
            other = _read_greeting(connection)
            if other is None:
                continue  # a stranger
            # Who ended while others were missing has to come again.
            arrived = {process: a for process, a in arrived.items() if process == 0 or not _has_left(a.connection)}
            fault = _fault(own, other, arrived)
            if fault:
                _refuse({**arrived, -1: _Arrival(other, "", connection)}, fault)
            address = own.addresses[other.process] if own.addresses else _seen(peer[0], host, other.port)
            arrived[other.process] = _Arrival(other, address, connection)
        arrivals = [arrived[process] for process in range(own.num_processes)]
        meeting = Meeting(tuple(a.address for a in arrivals), tuple(a.greeting.devices for a in arrivals))
        _answer(arrived, dataclasses.asdict(meeting))
    return meeting


def _greet(host: str, port: int, own: Greeting, deadline: float, wait_seconds: float) -> Meeting:
    # All processes but process 0.
    quiet_until = time.monotonic() + _QUIET_SECONDS
    reason = "nothing answers"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=_GREETING_SECONDS) as connection:
                connection.sendall(_line(dataclasses.asdict(own)))
                connection.settimeout(max(deadline - time.monotonic(), 0.001) + _GREETING_SECONDS)
                answer = _read_line(connection)
        except OSError as error:
            reason, answer = error.strerror or str(error), None
        if answer is not None:
            if "error" in answer:
                raise MissingWorkers(answer["error"])
            return Meeting(tuple(answer["addresses"]), tuple(answer["devices"]))
        if time.monotonic() > quiet_until:
            quiet_until = deadline
            print(f"process {own.process} waits for process 0 at {host}:{port}: {reason}", file=sys.stderr, flush=True)
        time.sleep(0.1)
    raise MissingWorkers(
        f"Process {own.process} of {own.num_processes} found no process 0 at {host}:{port} within {wait_seconds:.0f} s "
        f"({reason}). Start it there, or give all processes the address at which it can be reached."
    )


def _fault(own: Greeting, other: Greeting, arrived: dict[int, _Arrival]) -> str | None:
    # What is wrong with a greeting.
    if other.num_processes != own.num_processes or other.addresses != own.addresses:
        return (
            "The processes do not expect the same workers. "
            f"Process 0 expects {_expectation(own)}, process {other.process} {_expectation(other)}."
        )
    if not 0 <= other.process < own.num_processes:
        return f"Process ids of {own.num_processes} processes begin with 0. Received: {other.process}"
    if other.process in arrived:
        return f"Two processes have the id {other.process}: each needs its own, from 0 to {own.num_processes - 1}."
    return None


def _expectation(greeting: Greeting) -> str:
    return ", ".join(greeting.addresses) or f"{greeting.num_processes} processes"


def _missing_sentence(arrived: dict[int, _Arrival], num_processes: int, wait_seconds: float) -> str:
    missing = [str(process) for process in range(num_processes) if process not in arrived]
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return (
        f"Of {num_processes} processes, {shown} did not come within {wait_seconds:.0f} s. Start the same command with "
        "each process id; the output of a process that ended says why."
    )


def _seen(peer: str, host: str, port: int) -> str:
    # A process on the machine of process 0 can be reached by the name of that machine.
    address = ipaddress.ip_address(peer.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return _join(host if address.is_loopback else str(address), port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a machine whose IPv6 is switched off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)


def _read_greeting(connection: socket.socket) -> Greeting | None:
    connection.settimeout(_GREETING_SECONDS)
    try:
        content = _read_line(connection)
        return Greeting(**{**content, "addresses": tuple(content["addresses"])})
    except (OSError, TypeError, LookupError):
        return None


def _read_line(connection: socket.socket) -> dict | None:
    # None where the other side left, or says nothing that makes sense.
    with connection.makefile("r", encoding="utf-8") as file:
        try:
            content = json.loads(file.readline(_LONGEST))
        except ValueError:
            return None
    return content if isinstance(content, dict) else None


def _line(content: dict) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _has_left(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    if not readable:
        return False
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


def _refuse(arrived: dict[int, _Arrival], sentence: str) -> None:
    _answer(arrived, {"error": sentence})
    raise MissingWorkers(sentence)


def _answer(arrived: dict[int, _Arrival], content: dict) -> None:
    connections = [arrival.connection for arrival in arrived.values() if arrival.connection is not None]
    for connection in connections:
        with contextlib.suppress(OSError):  # one that has gone will be missed later
            connection.sendall(_line(content))
    for connection in connections:  # who closes first keeps the port for a minute: not this side
        with contextlib.suppress(OSError):
            connection.settimeout(_GREETING_SECONDS)
            connection.recv(1)
