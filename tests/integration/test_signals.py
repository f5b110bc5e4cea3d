"""What the signals that end processes leave behind: nothing that was answered is lost, and the exit code is as without
us.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from kafka_proxy import KafkaProxy
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import RunEnded
from topic_log import LoggedEvent, check_ledger, read_topic
from worker_process import wait_until

MakeTopic = Callable[..., Awaitable[str]]

_UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
_CAN_UNSHARE = (
    shutil.which("unshare") is not None
    and subprocess.run([*_UNSHARE, "true"], capture_output=True, timeout=10).returncode == 0
)

TESTS = Path(__file__).parent.parent
ANSWERS = 200
CLIENTS = 8


class Server(NamedTuple):
    """How a server of the app is started, what it exits with after SIGTERM, and how many processes serve."""

    arguments: list[str]
    exit_code: int
    processes: int = 1


_UVICORN = ["-m", "uvicorn", "answering_app:app", "--port", "PORT"]
_GUNICORN = ["-m", "gunicorn", "answering_app:app", "--bind", "127.0.0.1:PORT", "--log-level", "info"]
_GUNICORN += [
    "--worker-class",
    "uvicorn_worker.UvicornWorker",
    "--workers",
    "2",
    "--timeout",
    "100",
    "--no-control-socket",
]
_OBJECT = "import uvicorn; uvicorn.Server(uvicorn.Config('answering_app:app', port=PORT)).run(); print('went on')"

SERVERS = {
    "uvicorn": Server(_UVICORN, -signal.SIGTERM),
    "uvicorn workers": Server([*_UVICORN, "--workers", "2"], 0, 2),
    "uvicorn object": Server(["-c", _OBJECT], -signal.SIGTERM),
    "gunicorn": Server(_GUNICORN, 0, 2),
    "gunicorn preloaded": Server([*_GUNICORN, "--preload"], 0, 2),
}


def _environment(kafka: str, prefix: str, folder: Path, **more: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "LANG"))},
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": prefix,
        "RUNTAP_SPOOL_DIR": str(folder / "spool"),
        **more,
    }


@contextmanager
def _running(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        # Its workers as well, where a test failed before they had ended.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@contextmanager
def _serving(server: Server, environment: dict[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server, once all its processes serve, and its port."""
    (port,) = free_ports(1)
    arguments = [argument.replace("PORT", str(port)) for argument in server.arguments]
    with _running(arguments, environment, log) as process:
        wait_until(
            lambda: log.read_text().count("Application startup complete") == server.processes,
            seconds=90,
            what="the start",
        )
        yield process, port


def _ask(port: int, numbers: Iterator[int], answered: set[int]) -> None:
    """A client: asks until nobody answers any more."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        for number in numbers:
            connection.request("GET", f"/{number}")
            if int(connection.getresponse().read()) == number:
                answered.add(number)
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()


def _end_in_a_burst(server: Server, environment: dict[str, str], log: Path, first: int = 1) -> tuple[set[int], float]:
    """Sends SIGTERM as soon as so many requests are answered, while others come.

    Returns:
        What was answered, and how long the end took.
    """
    answered: set[int] = set()
    numbers = itertools.count(first)
    with _serving(server, environment, log) as (process, port):
        clients = [threading.Thread(target=_ask, args=(port, numbers, answered)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        wait_until(lambda: len(answered) >= ANSWERS, what="the answers")
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        exit_code = process.wait(20)
        seconds = time.monotonic() - began
        for client in clients:
            client.join(10)
    assert exit_code == server.exit_code, log.read_text()
    assert "went on" not in log.read_text()
    return answered, seconds


def _check_answers(logged: list[LoggedEvent], answered: set[int]) -> None:
    """Checks that every answered request is there, and nothing twice."""
    ended = [entry.event for entry in logged if isinstance(entry.event, RunEnded)]
    assert len({event.run_id for event in ended}) == len(ended)
    numbers = Counter(event.metadata["number"] for event in ended)
    assert set(numbers.values()) <= {1}
    assert answered - set(numbers) == set()


def _check_emitters(logged: list[LoggedEvent]) -> int:
    """Checks that each closed with a last report, and left no number out; returns how many there are."""
    emitters = {entry.emitter for entry in logged}
    for emitter in emitters:
        check_ledger([entry for entry in logged if entry.emitter == emitter])
    return len(emitters)


@pytest.fixture
def absent_kafka(kafka: str) -> Iterator[KafkaProxy]:
    """Where nobody listens until its mode is `pass`."""
    proxy = KafkaProxy()
    proxy.set_target(int(kafka.rpartition(":")[2]))
    proxy.set_mode("refuse")
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("uvicorn", "import"),
        ("uvicorn", "request"),
        ("uvicorn workers", "import"),
        ("uvicorn object", "import"),
        ("gunicorn", "import"),
        ("gunicorn preloaded", "import"),
    ],
)
async def test_server_that_is_told_to_end_stores_every_answer_once(
    name: str, taps: str, kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path, ANSWERING_APP_TAPS=taps)
    answered, _ = await asyncio.to_thread(_end_in_a_burst, SERVERS[name], environment, tmp_path / "log")
    logged = await read_topic(kafka, topic)
    _check_answers(logged, answered)
    assert _check_emitters(logged) <= SERVERS[name].processes


@pytest.mark.timeout(240)
async def test_servers_that_end_without_kafka_leave_every_answer_to_the_next_process(
    kafka: str, absent_kafka: KafkaProxy, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    address = f"127.0.0.1:{absent_kafka.port}"
    environment = _environment(address, topic_prefix, tmp_path, ANSWERING_APP_TAPS="import")
    names = ["uvicorn", "uvicorn workers", "gunicorn"]
    ends = await asyncio.gather(
        *(
            asyncio.to_thread(_end_in_a_burst, SERVERS[name], environment, tmp_path / name, first=place * 1_000_000)
            for place, name in enumerate(names, 1)
        )
    )
    # At most two of them are ours, the others the servers' own and a busy machine's.
    assert max(seconds for _, seconds in ends) < 10
    absent_kafka.set_mode("pass")
    done = await asyncio.to_thread(_run, _ADOPTS, environment)
    assert done.returncode == 0, done.stderr
    _check_answers(await read_topic(kafka, topic), set[int]().union(*(answered for answered, _ in ends)))


# Scripts print a number when its run has ended, and go on until they are ended.

_RUNS = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap, RunTapHandler
step = RunnableLambda(lambda number: number, name="step")
def run(number, handler):
    step.invoke(number, {"callbacks": [handler], "metadata": {"number": number}})
    print(number, flush=True)
def run_on(handler, first=0):
    for number in range(first, 1_000_000):
        run(number, handler)
"""

_ADOPTS = f"""{_RUNS}
with RunTap.from_env() as tap:
    run(-1, tap.handler)
    deadline = time.monotonic() + 20
    while any(Path(os.environ["RUNTAP_SPOOL_DIR"]).rglob("*.spool")):
        assert time.monotonic() < deadline, tap.stats()
        time.sleep(0.05)
"""

_HAS_NO_HANDLER = f"{_RUNS}\nrun_on(RunTapHandler())"

_HAS_A_HANDLER = f"""{_RUNS}
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
run_on(RunTapHandler())
"""

# Deaf to SIGTERM, as it was before.
_IGNORES = f"""{_RUNS}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
handler = RunTapHandler()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGALRM, lambda *_: sys.exit(8))
signal.alarm(1)
run_on(handler)
"""

# The kernel keeps the default action from a container's first process.
_OUTLIVES = f"""{_RUNS}
assert os.getpid() == 1
handler = RunTapHandler()
for number in range(3):
    run(number, handler)
    os.kill(1, signal.SIGTERM)
"""

_IN_A_CALLBACK = f"""{_RUNS}
tap = RunTap.from_env()
for number in range(100):
    run(number, tap.handler)
# The signal comes while the main thread holds the lock that the sender waits for.
with tap._emitter.buffer.lock:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.1)
time.sleep(10)
"""

_IN_A_FORKED_CHILD = f"""{_RUNS}
handler = RunTapHandler()
run(0, handler)
child = multiprocessing.get_context("fork").Process(target=run_on, args=(handler, 1))
child.start()
time.sleep(1)
child.terminate()
child.join(10)
sys.exit(-child.exitcode)
"""


def _run(script: str, environment: dict[str, str], *signals: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Runs a script, which gets the signals one after another once it has printed a few numbers."""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            printed = "".join(itertools.islice(process.stdout, 50)) if signals else ""
            for signum in signals:
                process.send_signal(signum)
                time.sleep(0.3)
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, printed + output, errors)


@pytest.mark.parametrize(
    ("script", "signals", "exit_code"),
    [
        (_HAS_NO_HANDLER, [signal.SIGTERM], -signal.SIGTERM),
        (_HAS_NO_HANDLER, [signal.SIGHUP], -signal.SIGHUP),
        (_IN_A_CALLBACK, [], -signal.SIGTERM),
        (_IN_A_FORKED_CHILD, [], signal.SIGTERM),
        (_IGNORES, [], 8),
    ],
    ids=["SIGTERM", "SIGHUP", "in a callback", "in a forked child", "ignored"],
)
async def test_script_that_a_signal_ends_stores_every_run_once(
    script: str,
    signals: list[signal.Signals],
    exit_code: int,
    kafka: str,
    topic_prefix: str,
    events_topic: MakeTopic,
    tmp_path: Path,
) -> None:
    topic = await events_topic()
    done = await asyncio.to_thread(_run, script, _environment(kafka, topic_prefix, tmp_path), *signals)
    assert (done.returncode, done.stderr) == (exit_code, "")
    logged = await read_topic(kafka, topic)
    # The last line may be cut.
    _check_answers(logged, {int(line) for line in done.stdout.splitlines(keepends=True) if line.endswith("\n")})
    _check_emitters(logged)


async def test_function_that_ends_the_process_at_a_signal_is_called_when_everything_is_sent(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path)
    done = await asyncio.to_thread(_run, _HAS_A_HANDLER, environment, signal.SIGTERM)
    assert (done.returncode, done.stderr) == (7, "")
    _check_answers(await read_topic(kafka, topic), {int(line) for line in done.stdout.split()})


def test_second_signal_ends_the_process_at_once(topic_prefix: str, tmp_path: Path) -> None:
    environment = _environment("127.0.0.1:1", topic_prefix, tmp_path)
    done = _run(_HAS_NO_HANDLER, environment, signal.SIGTERM, signal.SIGTERM)
    assert done.returncode == -signal.SIGTERM
    assert "events_left_in_spool" not in done.stderr
    # And the first alone waits for the spool.
    done = _run(_HAS_NO_HANDLER, environment, signal.SIGTERM)
    assert done.returncode == -signal.SIGTERM
    assert done.stderr.count("events_left_in_spool") == 1


@pytest.mark.skipif(not _CAN_UNSHARE, reason="this user may make no process namespace")
async def test_first_process_of_a_container_goes_on_and_so_does_its_emitter(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    environment = _environment(kafka, topic_prefix, tmp_path)
    command = [*_UNSHARE, sys.executable, "-c", _OUTLIVES]
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, b"")
    logged = await read_topic(kafka, topic)
    _check_answers(logged, {0, 1, 2})
    assert _check_emitters(logged) == 1


def test_signals_are_left_alone_where_the_setting_says_so(topic_prefix: str, tmp_path: Path) -> None:
    environment = _environment("127.0.0.1:1", topic_prefix, tmp_path)
    script = f"{_RUNS}\nrun(0, RunTapHandler())\nprint(repr(signal.getsignal(signal.SIGTERM)))"
    assert "SIG_DFL" in _run(script, {**environment, "RUNTAP_SIGNALS": "off"}).stdout
    assert "SIG_DFL" not in _run(script, environment).stdout
