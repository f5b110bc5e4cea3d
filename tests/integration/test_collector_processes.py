"""Whole processes: without set-up, without Kafka, forked, and with LangSmith beside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runtap_schemas import RunEnded
from topic_log import LoggedEvent, check_ledger, read_topic

MakeTopic = Callable[..., Awaitable[str]]

_NO_SET_UP = """
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTapHandler
step = RunnableLambda(lambda x: x, name="step")
for number in range(100):
    step.invoke(number, {"callbacks": [RunTapHandler(), RunTapHandler()]})
"""

_FIRST_EVENT_AT_EXIT = """
import atexit
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTapHandler
handler = RunTapHandler()
atexit.register(RunnableLambda(lambda x: x, name="step").invoke, 1, {"callbacks": [handler]})
"""

_UNREACHABLE = """
import atexit, time
# Registered first, called last.
atexit.register(lambda: print(time.monotonic(), flush=True))
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap
tap = RunTap.from_env(buffer_bytes=2_000_000)
step = RunnableLambda(lambda x: x)
config = {"callbacks": [tap.handler]}
step.invoke(0, config)
time.sleep(1)
slowest = 0.0
for number in range(3_000):
    started = time.perf_counter()
    step.invoke(number, config)
    slowest = max(slowest, time.perf_counter() - started)
    if not number % 100:
        # A pace with which a disk can keep up.
        time.sleep(0.02)
def sum_of(stats):
    dropped = sum(sum(kinds.values()) for kinds in stats.dropped.values())
    return stats.waiting + stats.superseded + stats.numbered + dropped
stats = tap.stats()
assert stats.held_bytes <= 2_000_000, stats
# Beside them a report.
assert stats.captured == 6_003 == sum_of(stats), stats
# Starts may be refused while the disk is slower than the loop; ends never are.
assert set(stats.dropped) <= {"buffer_full"} and set(stats.dropped.get("buffer_full", {})) <= {"run.started"}, stats
assert stats.spooled, stats
print(slowest, time.monotonic(), flush=True)
"""

_FORKS = """
import os, sys
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap
tap = RunTap.from_env()
step = RunnableLambda(lambda x: x, name="step")
config = {"callbacks": [tap.handler]}
step.invoke(0, config)
tap.flush()

def fork_inside(x):
    for child in range(5):
        step.invoke(0, config)
        if os.fork() == 0:
            for number in range(10):
                step.invoke(number, config)
            if child == 0:
                tap.close(5)
                os._exit(0)
            # The others leave as a worker does: through the interpreter's exit.
            sys.exit(0)
    return x

RunnableLambda(fork_inside, name="forks").invoke(0, config)
for _ in range(5):
    assert os.wait()[1] == 0
# The parent's own connection is as it was.
for number in range(100):
    step.invoke(number, config)
delivery = tap.close(10)
assert (delivery.waiting, delivery.dropped) == (0, {}), delivery
"""

_POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from langchain_core.runnables import RunnableLambda
from runtap_collector import RunTap

def run(number, handler, name):
    return RunnableLambda(lambda x: x, name=name).invoke(number, {"callbacks": [handler]})

if __name__ == "__main__":
    with RunTap.from_env(service="checkout", environment="pool", metadata={"team": "red"}) as tap:
        run(0, tap.handler, "parent")
        for how in ("spawn", "fork"):
            with ProcessPoolExecutor(2, multiprocessing.get_context(how)) as pool:
                assert list(pool.map(run, range(50), [tap.handler] * 50, [how] * 50)) == list(range(50))
"""

_INSTALLED = """
import threading
from langchain_core.runnables import RunnableLambda
import runtap_collector
step = RunnableLambda(lambda x: x, name="inside")
outside = RunnableLambda(lambda x: x, name="outside")
def in_thread():
    thread = threading.Thread(target=step.invoke, args=(1,))
    thread.start()
    thread.join()

outside.invoke(1)
with runtap_collector.install(service="block"):
    step.invoke(1)
    in_thread()
    step.batch([1, 2])
    def leave(x):
        installation.uninstall()
        return x
outside.invoke(1)
installation = runtap_collector.install(service="whole")
RunnableLambda(lambda x: leave(step.invoke(x)), name="left-open").invoke(1)
outside.invoke(1)
runtap_collector.install()
with runtap_collector.RunTap.from_env() as tap:
    step.invoke(1, {"callbacks": [tap.handler]})
"""

_LANGSMITH = """
import asyncio, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import LangChainTracer
from langsmith import Client
from runtap_collector import RunTap
received = []
class Sink(BaseHTTPRequestHandler):
    def do_POST(self):
        received.append((self.path, self.rfile.read(int(self.headers.get("Content-Length") or 0))))
        self.answer(b"{}")
    def do_GET(self):
        limits = {"size_limit": 100, "size_limit_bytes": 20_000_000, "scale_up_qsize_trigger": 1_000}
        limits |= {"scale_up_nthreads_limit": 4, "scale_down_nempty_trigger": 4, "use_multipart_endpoint": False}
        self.answer(json.dumps({"version": "1", "batch_ingest_config": limits}).encode())
    do_PATCH = do_POST
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = Client(api_url=f"http://127.0.0.1:{server.server_address[1]}", api_key="none")
with RunTap.from_env() as tap:
    config = {"callbacks": [LangChainTracer(client=client), tap.handler]}
    chain = RunnableLambda(lambda x: x, name="one") | RunnableLambda(lambda x: x, name="two")
    chain.invoke(1, config)
    asyncio.run(chain.ainvoke(1, config))
client.flush()
server.shutdown()
bodies = b"".join(body for _, body in received)
print(len(received), bodies.count(b'"one"') > 0 and bodies.count(b'"two"') > 0)
"""


def _run(
    script: str, kafka: str, prefix: str, timeout: float = 30, *, is_file: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RUNTAP_", "LANG"))},
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": prefix,
        "RUNTAP_SERVICE": "script",
    }
    return subprocess.run(
        [sys.executable, *([] if is_file else ["-c"]), script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _names(logged: list[LoggedEvent]) -> Counter[str]:
    return Counter(entry.event.name for entry in logged if isinstance(entry.event, RunEnded))


async def test_handler_without_set_up_sends_everything_at_exit(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    done = _run(_NO_SET_UP, kafka, topic_prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    assert _names(logged) == {"step": 100}
    assert {entry.event.service for entry in logged if isinstance(entry.event, RunEnded)} == {"script"}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on no thread can be started at exit")
async def test_first_event_at_exit_still_finds_kafka_by_name(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    done = _run(_FIRST_EVENT_AT_EXIT, kafka.replace("127.0.0.1", "localhost"), topic_prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    assert _names(logged) == {"step": 1}


@pytest.mark.alone
@pytest.mark.parametrize("buffer_bytes", ["2_000_000", "33_554_432"], ids=["small buffer", "default buffer"])
def test_unreachable_kafka_never_slows_the_app_and_exit_takes_two_seconds(buffer_bytes: str) -> None:
    script = _UNREACHABLE.replace("2_000_000", buffer_bytes)
    if buffer_bytes == "33_554_432":
        script = script.replace("assert stats.spooled, stats", "assert stats.spooled and not stats.dropped, stats")
        assert "not stats.dropped" in script
    done = _run(script, "127.0.0.1:1", "nowhere")
    assert done.returncode == 0, done.stderr
    slowest_seconds, exit_began_at, ended_at = (float(word) for word in done.stdout.split())
    assert slowest_seconds < 0.2
    assert ended_at - exit_began_at < 2.2
    assert done.stderr.count("kafka_unreachable") == 1
    assert done.stderr.count("events_left_in_spool") == 1
    assert len(done.stderr.splitlines()) == 2, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_forked_children_are_emitters_of_their_own(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    done = _run(_FORKS, kafka, topic_prefix)
    assert (done.returncode, done.stderr) == (0, "")
    by_emitter: dict[str, list[LoggedEvent]] = {}
    for entry in await read_topic(kafka, topic):
        by_emitter.setdefault(entry.emitter, []).append(entry)
    assert len(by_emitter) == 6
    runs = sorted((_names(entries) for entries in by_emitter.values()), key=lambda names: names.total())
    assert runs == [{"step": 10}] * 5 + [{"step": 106, "forks": 1}]
    for entries in by_emitter.values():
        check_ledger(entries)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_handler_in_the_processes_of_a_pool_reports_to_their_emitters(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path
) -> None:
    topic = await events_topic()
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    done = _run(str(script), kafka, topic_prefix, is_file=True)
    assert (done.returncode, done.stderr) == (0, "")
    logged = await read_topic(kafka, topic)
    assert _names(logged) == {"parent": 1, "spawn": 50, "fork": 50}
    emitters = {entry.emitter for entry in logged}
    # A worker of a pool may be too quick for the other one.
    assert 3 <= len(emitters) <= 5
    for emitter in emitters:
        check_ledger([entry for entry in logged if entry.emitter == emitter])
    for entry in logged:
        if isinstance(entry.event, RunEnded):
            # The tap's, not the environment's.
            assert (entry.event.service, entry.event.environment) == ("checkout", "pool")
            assert entry.event.metadata == {"team": "red"}


async def test_installed_hook_taps_every_thread_until_it_is_switched_off(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    done = _run(_INSTALLED, kafka, topic_prefix)
    assert (done.returncode, done.stderr) == (0, "")
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    assert _names(logged) == {"inside": 6, "left-open": 1}
    assert Counter(entry.event.service for entry in logged if isinstance(entry.event, RunEnded)) == {
        "block": 4,
        "whole": 2,
        "script": 1,
    }


async def test_langsmiths_tracer_and_the_handler_both_see_every_run(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    done = _run(_LANGSMITH, kafka, topic_prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == "True"
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    assert _names(logged) == {"one": 2, "two": 2, "RunnableSequence": 2}
