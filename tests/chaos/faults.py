"""Inflicts faults, one method a kind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections import Counter
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from chaos.plan import MORTAL, Fault
from chaos.processes import TOPIC, Processes
from runtap_demo.kafka.broker import Node

_ADMIN_TRIES = 20
_LEADER_TRIES = 4
_ADMIN_SECONDS = 4.0


def say(event: str, **fields: Any) -> None:
    """A line of what happens."""
    print(json.dumps({"event": event, **fields}), flush=True)  # noqa: T201


class Faults:
    """What can befall the processes of a run. `counts` says what did, `found` more of it, `failures` how often it
    could not be done.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.counts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.failures = 0
        self.partitions = processes.plan.partitions

    def inflict(self, fault: Fault) -> None:
        """Does what a fault says, and waits until it is over."""
        try:
            getattr(self, f"_{fault.kind}")(fault)
        except Exception as error:  # noqa: BLE001
            say("fault_failed", kind=fault.kind, reason=repr(error))
            self.failures += 1
        else:
            self.counts[fault.kind] += 1

    def _kill_worker(self, fault: Fault) -> None:
        worker = self._processes.running_worker(fault.target)
        worker.end_until(time.monotonic() + fault.seconds, by_kill=True)
        self._processes.takeovers.note_kill(worker.log, worker.log_start)

    def _leave_worker(self, fault: Fault) -> None:
        worker = self._processes.running_worker(fault.target)
        worker.end_until(time.monotonic() + fault.seconds, by_kill=False)

    def _stop_worker(self, fault: Fault) -> None:
        worker = self._processes.running_worker(fault.target)
        worker.is_stopped = True
        _stop(worker.process, fault.seconds)
        worker.is_stopped = False

    def _stop_emitter(self, fault: Fault) -> None:
        _stop(self._processes.emitters[fault.target].process, fault.seconds)

    def _kill_emitter(self, fault: Fault) -> None:
        while (emitter := self._processes.emitters[MORTAL]).is_meant:
            time.sleep(0.05)
        emitter.end_until(time.monotonic() + fault.seconds, by_kill=True)

    def _orphan_spool(self, fault: Fault) -> None:
        proxies = self._processes.proxies
        with self._processes.locks["broker"]:
            proxies.closed.add("kafka")
            proxies.cut("kafka")
            time.sleep(fault.seconds)
            self._kill_emitter(fault)
            proxies.closed.remove("kafka")

    def _kill_broker(self, fault: Fault) -> None:
        with self._processes.locks["broker"]:
            node = self._leader(fault.target, "leaders_killed")
            node.kill()
            time.sleep(fault.seconds)
            node.start(60)

    def _stop_broker(self, fault: Fault) -> None:
        with self._processes.locks["broker"]:
            node = self._leader(fault.target, "leaders_stopped")
            node.suspend()
            time.sleep(fault.seconds)
            node.resume()

    def _leader(self, partition: int, name: str) -> Node:
        """The node that leads a partition of the events, counted by `name`; any node where nobody can say."""
        nodes = {node.node_id: node for node in self._processes.kafka.nodes}
        for _ in range(_LEADER_TRIES):
            try:
                leader = nodes[asyncio.run(self._ask_leader(partition))]
            except Exception as error:  # noqa: BLE001
                say("leader_unknown", reason=repr(error))
                time.sleep(1)
            else:
                self.found[name] += 1
                return leader
        return nodes[1 + partition % len(nodes)]

    async def _ask_leader(self, partition: int) -> int:
        admin = AIOKafkaAdminClient(**self._processes.settings.client_options())
        try:
            async with asyncio.timeout(_ADMIN_SECONDS):
                await admin.start()
                (topic,) = await admin.describe_topics([TOPIC])
                return next(int(p["leader"]) for p in topic["partitions"] if p["partition"] == partition)
        finally:
            await admin.close()

    def _kill_database(self, fault: Fault) -> None:
        with self._processes.locks["database"]:
            self._processes.database.kill()
            time.sleep(fault.seconds)
            self._processes.database.start()

    def _stop_database(self, fault: Fault) -> None:
        with self._processes.locks["database"]:
            self._processes.database.stop_for(fault.seconds)

    def _cut_kafka(self, _fault: Fault) -> None:
        self._processes.proxies.cut("kafka")

    def _cut_database(self, _fault: Fault) -> None:
        self._processes.proxies.cut("database")

    def _add_partitions(self, _fault: Fault) -> None:
        with self._processes.locks["admin"]:
            if self.partitions < 3 * self._processes.plan.partitions:
                self.partitions += 1
                asyncio.run(self._grow_topic())

    async def _grow_topic(self) -> None:
        for _ in range(_ADMIN_TRIES):
            admin = AIOKafkaAdminClient(**self._processes.settings.client_options())
            try:
                await admin.start()
                await admin.create_partitions({TOPIC: NewPartitions(total_count=self.partitions)})
            except Exception as error:  # noqa: BLE001
                say("partitions_not_added", reason=repr(error))
                await asyncio.sleep(1)
            else:
                return
            finally:
                await admin.close()


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
