"""
The sender: a thread with a loop of its own, in which everything that touches Kafka happens.

    Ring.take -> Sender._move (to lanes) -> Sender._number (a batch) -> Sender._deliver -> Link.send

Idle, it sleeps: the first event after a pause wakes it, later ones ride along.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from runtap_collector.lanes import Batch, Lane, NumberedEvent
from runtap_collector.ledger import Ledger
from runtap_collector.link import (
    BatchRefusedError,
    Link,
    PartitionUnknownError,
    SendDeniedError,
    SendError,
    SendFailedError,
    partition_of,
)
from runtap_collector.logs import RareLog, log
from runtap_collector.records import Record
from runtap_collector.ring import Ring
from runtap_schemas import ConnectionSettings, encode_event, number_event
from runtap_schemas.topics import events_topic

LINGER_SECONDS = 0.05
FIRST_REPORT_SECONDS = 1.0
REPORT_SECONDS = 10.0
MAX_EVENT_BYTES = 256 * 1024
RETRY_SECONDS = 0.2
DENIED_RETRY_SECONDS = 3.0
TASK_RETRY_SECONDS = 1.0
# A partition that stays unknown this long, in metadata that know others, is gone: the topic was made again, smaller.
GONE_SECONDS = 10.0
# What closing keeps of its time for hanging up.
_HANG_UP_SECONDS = 0.4


class _Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        try:
            return await super().getaddrinfo(host, port, **options)
        except RuntimeError:
            # At interpreter exit no executor takes work any more, and the last events still have to go.
            return socket.getaddrinfo(host, port, **options)


class Sender:
    """
    Sends what the ring takes, until closed. One use.
    """

    def __init__(
        self, ring: Ring, ledger: Ledger, settings: ConnectionSettings, every_report: Callable[[], None]
    ) -> None:
        """
        Args:
            ring: where events come from.
            ledger: what counts them.
            settings: how to reach Kafka.
            every_report: called in the sender's thread before each report.
        """
        self._ring = ring
        self._ledger = ledger
        self._every_report = every_report
        self._loop: _Loop | None = None
        self._link = Link(settings, events_topic(settings.topic_prefix))
        self._warnings = RareLog()
        self._has_records = asyncio.Event()
        self._must_stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._report_turn = 0
        self._is_finishing = False
        self._thread = threading.Thread(target=self._run, name="runtap-sender", daemon=True)

    def start(self) -> None:
        """
        Starts the thread.

        Raises:
            RuntimeError: the system or a leaving interpreter starts none.
        """
        self._loop = _Loop()
        # There is an event already: that is why there is a sender.
        self._has_records.set()
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def wake(self) -> None:
        """
        Tells the sender that the ring is not empty any more. From any thread.
        """
        self._call(self._has_records.set)

    def flush(self, timeout_seconds: float) -> None:
        """
        Waits until everything captured so far is through, or time is up.
        """
        self._wait_for(self._flush, timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """
        Sends what the closed ring still holds, then the last report, and ends the thread.
        """
        deadline = time.monotonic() + timeout_seconds
        self._wait_for(self._finish, max(0.0, timeout_seconds - _HANG_UP_SECONDS))
        if self._call(self._must_stop.set):
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _call(self, function: Callable[[], object]) -> bool:
        """
        Has the sender's thread call a function. False: the thread has not begun, or ended and counted what was left.
        """
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False
        return True

    def _wait_for(self, function: Callable[[], Awaitable[None]], timeout_seconds: float) -> None:
        done = threading.Event()

        async def call() -> None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await function()
            except TimeoutError:
                return
            finally:
                done.set()

        if self._call(lambda: self._keep(asyncio.ensure_future(call()))):
            # A little later than the task's own end, and so that a loop that stands still cannot hold the caller.
            done.wait(timeout_seconds + 0.05)

    # In the sender's thread.

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        loop.set_exception_handler(self._complain)
        try:
            with self._link.overheard():
                loop.run_until_complete(self._main())
        except Exception:  # noqa: BLE001 - the thread's last words
            log.error("sender_died", exc_info=True)
        finally:
            loop.close()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._warnings.warn(
            "sender_loop_complained", message=context.get("message"), cause=repr(context.get("exception"))
        )

    async def _main(self) -> None:
        for name, function in (("link", self._link.run), ("collect", self._collect), ("report", self._report)):
            self._supervise(f"runtap-{name}", function)
        await self._must_stop.wait()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._link.stop()
        self._count_rest()

    def _supervise(self, name: str, function: Callable[[], Awaitable[None]]) -> None:
        async def keep() -> None:
            while True:
                try:
                    await function()
                    return
                except Exception:  # noqa: BLE001 - a fault of ours must not end the sending
                    self._warnings.warn("sender_task_failed", task=name, exc_info=True)
                    await asyncio.sleep(TASK_RETRY_SECONDS)

        self._keep(asyncio.create_task(keep(), name=name))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _collect(self) -> None:
        while True:
            await self._has_records.wait()
            self._has_records.clear()
            while True:
                await asyncio.sleep(LINGER_SECONDS)
                # Until Kafka is there nobody knows the partitions, and the ring is the place to wait.
                await self._link.wait_until_up()
                if self._move() is False:
                    break

    def _move(self) -> bool | None:
        """
        Moves the ring's records to their lanes. False: there were none, and the next one will wake us. `None`: the
        topic is away, and they stay where they are.
        """
        partitions = self._link.partitions()
        if not partitions:
            return None
        records = self._ring.take()
        for record in records:
            try:
                self._lane_of(record, partitions).enter(record)
            except Exception:  # noqa: BLE001 - the others are out of the ring already, and must not be lost with it
                self._warnings.warn("event_not_routed", kind=record.kind, exc_info=True)
                self._ring.drop([record], "internal_error")
        return bool(records)

    def _lane_of(self, record: Record, partitions: frozenset[int]) -> Lane:
        route = record.route
        # A trace keeps the partition with which it began, unless that is gone.
        if route.partition is None or (route.partition not in partitions and route.partition not in self._ledger.lanes):
            route.partition = partition_of(route.key, len(partitions))
        return self._lane(route.partition)

    def _lane(self, partition: int) -> Lane:
        lane = self._ledger.lanes.get(partition)
        if lane is None:
            lane = self._ledger.lanes[partition] = Lane(partition)
            self._supervise(f"runtap-lane-{partition}", lambda: self._drive(lane))
        return lane

    async def _drive(self, lane: Lane) -> None:
        while True:
            if lane.batches:
                await self._deliver(lane, lane.batches[0])
            elif lane.pending or lane.report_is_due:
                await self._link.wait_until_up()
                # Before numbers are given that could never be seen.
                if lane.partition not in self._link.partitions():
                    await self._await_partition(lane, PartitionUnknownError("the topic lacks the partition"))
                else:
                    self._number(lane)
            else:
                lane.has_work.clear()
                lane.is_idle.set()
                await lane.has_work.wait()

    def _number(self, lane: Lane) -> None:
        """
        Makes the lane's next batch: as many events as fit, each with its number for ever.
        """
        batch = Batch(lane.last + 1, [], self._link.new_builder())
        if lane.report_is_due:
            lane.report_is_due = False
            report = self._ledger.report(lane, closing=self._is_finishing)
            self._append(lane, batch, encode_event(report), report.at_ns, self._ledger.emitter, 0)
            self._ledger.count_report()
        while lane.pending:
            record = lane.pending[0]
            if record.is_superseded:
                lane.pending.popleft()
                self._ring.supersede(record)
                lane.pass_through(1)
                continue
            try:
                fits = self._append(lane, batch, *self._build(record), record.route.key, record.size_bytes)
            except Exception:  # noqa: BLE001 - one event that cannot be written must not stop its lane
                self._warnings.warn("event_not_encoded", kind=record.kind, exc_info=True)
                lane.pending.popleft()
                self._ring.drop([record], "internal_error")
                lane.pass_through(1)
                continue
            if not fits:
                break
            lane.pending.popleft()

    def _build(self, record: Record) -> tuple[bytes, int]:
        body = encode_event(record.build())
        if len(body) > MAX_EVENT_BYTES and record.content_bytes:
            self._ring.drop_content(record)
            body = encode_event(record.build())
        return body, record.at_ns

    def _append(self, lane: Lane, batch: Batch, body: bytes, at_ns: int, key: str, size_bytes: int) -> bool:
        value = number_event(body, self._ledger.emitter, lane.last + 1)
        numbered = NumberedEvent(at_ns // 1_000_000, key.encode(), value, size_bytes)
        if batch.builder.append(timestamp=numbered.timestamp_ms, key=numbered.key, value=value) is None:
            return False
        if not batch.events:
            # With its first number, not when it is full: whatever goes wrong from here on, the number is not lost.
            lane.batches.append(batch)
        lane.last += 1
        batch.events.append(numbered)
        return True

    async def _deliver(self, lane: Lane, batch: Batch) -> None:
        """
        Sends the lane's first batch once, and puts what follows from the answer in its place.
        """
        try:
            await self._link.send(batch.builder, lane.partition)
        except BatchRefusedError as refusal:
            self._halve_or_skip(lane, batch, refusal.reason)
        except SendDeniedError as denial:
            self._warnings.warn("lane_held", partition=lane.partition, reason=denial.reason)
            await asyncio.sleep(DENIED_RETRY_SECONDS)
        except PartitionUnknownError as unknown:
            await self._await_partition(lane, unknown)
        except SendFailedError as failure:
            batch.is_fate_unknown = True
            self._link.say_down(failure.reason)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            batch.is_fate_unknown = True
            raise
        else:
            lane.acknowledged += len(batch.events)
            lane.delivered += batch.event_count
            self._finish_batch(lane, batch)

    def _finish_batch(self, lane: Lane, batch: Batch) -> None:
        lane.batches.popleft()
        self._ring.release(batch.size_bytes)
        lane.pass_through(batch.event_count)

    def _halve_or_skip(self, lane: Lane, batch: Batch, reason: str) -> None:
        if len(batch.events) > 1:
            lane.batches.popleft()
            lane.batches.extendleft(reversed(batch.halve(self._link.new_builder)))
            return
        self._skip(lane, batch, "unknown" if batch.is_fate_unknown else reason)

    def _skip(self, lane: Lane, batch: Batch, reason: str) -> None:
        self._warnings.warn(
            "events_skipped", partition=lane.partition, first=batch.first, last=batch.last, reason=reason
        )
        self._ledger.skip(lane, batch.first, batch.last, reason)
        self._finish_batch(lane, batch)

    async def _await_partition(self, lane: Lane, error: SendError) -> None:
        """
        Waits for a partition that the metadata lack; where it stays away, gives its batches up and moves the rest.
        """
        deadline = time.monotonic() + GONE_SECONDS
        while lane.partition not in (partitions := self._link.partitions()):
            if partitions and time.monotonic() > deadline:
                self._give_up_partition(lane, partitions)
                return
            self._link.say_down(error.reason)
            try:
                await self._link.refresh()
            except TimeoutError:
                deadline = time.monotonic() + GONE_SECONDS
            await asyncio.sleep(RETRY_SECONDS)

    def _give_up_partition(self, lane: Lane, partitions: frozenset[int]) -> None:
        while lane.batches:
            self._skip(lane, lane.batches[0], "unknown")
        lane.report_is_due = False
        records, count = list(lane.pending), len(lane.pending)
        lane.pending.clear()
        for record in records:
            record.route.partition = partition_of(record.route.key, len(partitions))
            self._lane(record.route.partition).enter(record)
        lane.pass_through(count)

    async def _report(self) -> None:
        await asyncio.sleep(FIRST_REPORT_SECONDS)
        while True:
            await self._link.wait_until_up()
            self._every_report()
            self._next_report_lane().ask_for_report()
            await asyncio.sleep(REPORT_SECONDS)

    def _next_report_lane(self) -> Lane:
        """
        Reports go round the lanes, which keeps quiet ones known.
        """
        partitions = self._link.partitions()
        known = sorted(partition for partition in self._ledger.lanes if partition in partitions)
        if not known:
            return self._lane(partition_of(self._ledger.emitter, len(partitions) or 1))
        self._report_turn += 1
        return self._lane(known[self._report_turn % len(known)])

    async def _flush(self) -> None:
        await self._link.wait_until_up()
        while self._move() is None:  # noqa: ASYNC110 - aiokafka has no event for a topic that is back
            await asyncio.sleep(RETRY_SECONDS)
        await asyncio.gather(*(lane.settle() for lane in list(self._ledger.lanes.values())))

    async def _finish(self) -> None:
        await self._flush()
        for lane in list(self._ledger.lanes.values()):
            await lane.is_idle.wait()
        self._is_finishing = True
        lane = self._next_report_lane()
        lane.ask_for_report()
        await lane.is_idle.wait()

    def _count_rest(self) -> None:
        """
        Counts what never got a number as dropped. What got one may be in the log: the gap, if there is one, says so.
        """
        rest = list(self._ring.take())
        for lane in self._ledger.lanes.values():
            rest += lane.pending
            lane.pending.clear()
        self._ring.drop(rest, "closed")
        unacknowledged = sum(len(batch.events) for lane in self._ledger.lanes.values() for batch in lane.batches)
        if rest or unacknowledged:
            log.warning("events_left_unsent", dropped=len(rest), unacknowledged=unacknowledged)
