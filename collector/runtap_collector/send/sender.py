"""The sender: a thread with a loop of its own, in which everything that touches Kafka happens.

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

from runtap_collector.logs import RareLog, log
from runtap_collector.send.encoding import report_of
from runtap_collector.send.lanes import Batch, Lane
from runtap_collector.send.ledger import Ledger
from runtap_collector.send.link import (
    BatchRefusedError,
    Link,
    PartitionUnknownError,
    SendDeniedError,
    SendError,
    SendFailedError,
)
from runtap_collector.send.partitions import partition_of, partitions_of
from runtap_collector.send.records import Record
from runtap_collector.send.ring import Ring
from runtap_collector.spool.replay import Replay
from runtap_collector.spool.spool import Spool, SpoolError, stored_form
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import events_topic

LINGER_SECONDS = 0.05
FIRST_REPORT_SECONDS = 1.0
REPORT_SECONDS = 10.0
# While there is much to send, fewer and larger batches: each costs as much as a hundred events in it.
BUSY_EVENTS = 10
BUSY_LINGER_SECONDS = 0.4
# Kafka away for longer, and events go to the spool.
AWAY_SECONDS = 1.0
RETRY_SECONDS = 0.2
DENIED_RETRY_SECONDS = 3.0
TASK_RETRY_SECONDS = 1.0
# A partition that stays unknown this long, in metadata that know others, is gone: the topic was made again, smaller.
GONE_SECONDS = 10.0
# A fifth of a millisecond's work, which shows in the slowest hundredth of the app's runs. Beside an app that computes
# all the time the interpreter comes back after 5 ms only: 6,400 events a second, more than such an app brings about.
_BREATH_EVENTS = 32
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
    """Sends what the ring takes, until closed. One use."""

    def __init__(
        self,
        ring: Ring,
        ledger: Ledger,
        spool: Spool,
        settings: ConnectionSettings,
        every_report: Callable[[], None],
        on_death: Callable[[], None],
    ) -> None:
        """Args:
        ring: where events come from.
        ledger: what counts them.
        spool: where they wait when Kafka is away.
        settings: how to reach Kafka.
        every_report: called in the sender's thread before each report.
        on_death: called in the sender's thread as its last act, should a fault of ours end it.
        """
        self._ring = ring
        self._ledger = ledger
        self._every_report = every_report
        self._on_death = on_death
        self._loop: _Loop | None = None
        self._link = Link(settings, events_topic(settings.topic_prefix))
        self._spool = spool
        self._replay = Replay(self, spool, ring, ledger, self._link)
        self._warnings = RareLog()
        self._has_records = asyncio.Event()
        self._must_stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._report_turn = 0
        self._times_spooled = 0
        self._is_finishing = False
        self._thread = threading.Thread(target=self._run, name="runtap-sender", daemon=True)

    def start(self) -> None:
        """Starts the thread.

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

    @property
    def down_seconds(self) -> float:
        """For how long Kafka could not be written, as far as is known. 0: it could at last."""
        unanswered_seconds = self._link.unanswered_seconds
        return max(self._link.down_seconds, unanswered_seconds if unanswered_seconds > AWAY_SECONDS else 0.0)

    def wake(self) -> None:
        """Tells the sender that the ring is not empty any more. From any thread."""
        self._call(self._has_records.set)

    def flush(self, timeout_seconds: float) -> None:
        """Waits until everything captured so far is through, or time is up."""
        self._wait_for(self._flush, timeout_seconds)

    def secure(self, timeout_seconds: float) -> None:
        """Has everything captured so far sent, or spooled where Kafka takes too long; waits for it until time is up."""
        self._wait_for(self._secure, timeout_seconds)

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def close(self, timeout_seconds: float) -> None:
        """Sends what the closed ring still holds, then the last report, and ends the thread."""
        deadline = time.monotonic() + timeout_seconds
        if not self._must_stop.is_set():
            self._wait_for(self._finish, max(0.0, timeout_seconds - _HANG_UP_SECONDS))
        if self._call(self._must_stop.set):
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _call(self, function: Callable[[], object]) -> bool:
        """Has the sender's thread call a function. False: the thread has not begun, or ended and
        counted what was left.
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
        except BaseException:  # noqa: BLE001 - the thread's last words
            log.error("sender_died", exc_info=True)
            has_died = True
        else:
            has_died = False
        loop.close()
        if has_died:
            self._on_death()

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._warnings.warn(
            "sender_loop_complained", message=context.get("message"), cause=repr(context.get("exception"))
        )

    async def _main(self) -> None:
        for lane in self._ledger.all_lanes():
            # Of a sender that died.
            lane.move_to_another_loop()
            self.drive(lane)
        for name, function in (
            ("link", self._link.run),
            ("collect", self._collect),
            ("report", self._report),
            ("replay", self._replay.run),
        ):
            self._supervise(f"runtap-{name}", function)
        await self._must_stop.wait()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.put_rest_away()
        await self._link.stop()

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
            linger_seconds = LINGER_SECONDS
            while True:
                await self._linger(linger_seconds)
                moved = await self._pass_on()
                if moved == 0:
                    break
                linger_seconds = LINGER_SECONDS if moved is not None and moved <= BUSY_EVENTS else BUSY_LINGER_SECONDS

    async def _linger(self, seconds: float) -> None:
        """Waits for more to send: at most so long, and no longer than the first step once the ring fills."""
        await asyncio.sleep(LINGER_SECONDS)
        if seconds > LINGER_SECONDS:
            try:
                async with asyncio.timeout(seconds - LINGER_SECONDS):
                    await self._has_records.wait()
            except TimeoutError:
                return
            self._has_records.clear()

    async def _pass_on(self) -> int | None:
        """Moves the ring's records on: to their lanes, or into the spool while Kafka is away. As `_move`."""
        if not self._link.is_up and not self._must_spool():
            # Most often it has just begun. Nobody knows the partitions yet, and the ring is the place to wait.
            try:
                async with asyncio.timeout(AWAY_SECONDS):
                    await self._link.wait_until_up()
            except TimeoutError:
                pass
        if self._must_spool() and self._spool.is_usable:
            try:
                return self._put_in_spool()
            except SpoolError:
                # Said and counted there.
                pass
        if not self._link.is_up:
            return None
        return self._move()

    def _must_spool(self) -> bool:
        """Whether Kafka has been away for a while, as far as is known, or takes nothing while memory fills."""
        is_filling = self._ring.held_bytes > self._ring.spool_mark
        return self.down_seconds > AWAY_SECONDS or (is_filling and self._link.silent_seconds > AWAY_SECONDS)

    def _put_in_spool(self) -> int:
        """Moves all that waits into the spool, and copies there what is on its way: nobody knows whether it arrives."""
        taken = self._ring.take()
        lanes = list(self._ledger.lanes.values())
        pending = {lane: list(lane.pending) for lane in lanes}
        for lane in lanes:
            lane.pending.clear()
        # Looked at once: an app's thread may end a run at any moment.
        records = [r for gone in pending.values() for r in gone if r.run is None or not r.run.ended]
        superseded = sum(map(len, pending.values())) - len(records)
        records += taken
        records.sort(key=lambda record: record.monotonic_ns)
        batches = [(lane, batch) for lane in lanes for batch in lane.batches if not batch.is_spooled]
        now_ns = time.time_ns()
        stored = [stored_form(batch, lane.partition, now_ns) for lane, batch in batches]
        try:
            forgets = self._spool.write(self._ledger.emitter, records, stored)
        except BaseException:
            self._ring.put_back(taken)
            for lane, gone in pending.items():
                lane.pending.extend(gone)
            raise
        for (_, batch), forget in zip(batches, forgets, strict=True):
            batch.is_spooled = True
            batch.on_done = forget
        self._ring.release(sum(record.size_bytes for record in records))
        self._ring.supersede(superseded)
        for lane, gone in pending.items():
            lane.pass_through(len(gone))
        self._times_spooled += bool(records)
        self._replay.has_events.set()
        return len(records)

    def _move(self) -> int | None:
        """Moves the ring's records to their lanes. 0: there were none, and the next one will wake us. `None`: the topic
        is away, and they stay where they are.
        """
        partitions = self._link.partitions()
        if not partitions:
            return None
        records = self._ring.take()
        self._route(records, partitions)
        by_lane: dict[int, list[Record]] = {}
        for record in records:
            partition = record.route.partition
            assert partition is not None
            if partition in by_lane:
                by_lane[partition].append(record)
            else:
                by_lane[partition] = [record]
        for partition, entering in by_lane.items():
            self.lane(partition).enter(entering)
        return len(records)

    def _route(self, records: list[Record], partitions: frozenset[int]) -> None:
        """Gives partitions to traces that have none. A trace keeps the one with which it began."""
        routes = {id(record.route): record.route for record in records if record.route.partition is None}
        keys = [route.key_text() for route in routes.values()]
        for route, partition in zip(routes.values(), partitions_of(keys, len(partitions)), strict=True):
            route.partition = partition

    def lane(self, partition: int) -> Lane:
        """This emitter's lane of a partition."""
        lane = self._ledger.lanes.get(partition)
        if lane is None:
            lane = self._ledger.lanes[partition] = Lane(partition, self._ledger.emitter)
            self.drive(lane)
        return lane

    def drive(self, lane: Lane) -> None:
        """Sets a lane going."""
        self._supervise(f"runtap-lane-{lane.partition}", lambda: self._drive(lane))

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
        """Makes the lane's next batch: as many events as fit, each with its number for ever."""
        batch = Batch(lane.emitter, lane.last + 1, self._link.new_builder())
        if lane.report_is_due:
            lane.report_is_due = False
            report = self._ledger.report(lane, closing=self._is_finishing)
            batch.append(report_of(report, lane.emitter))
            self._note_number(lane, batch)
            self._ledger.count_report(report)
        superseded = 0
        pending = lane.pending
        while pending:
            record = pending[0]
            run = record.run
            if run is not None and run.ended:
                pending.popleft()
                superseded += 1
                continue
            try:
                if not batch.append(record):
                    break
                self._note_number(lane, batch)
            except Exception:  # noqa: BLE001 - one event that cannot be written must not stop its lane
                self._warnings.warn("event_not_encoded", kind=record.kind, exc_info=True)
                self._ring.drop([record], "internal_error")
                lane.pass_through(1)
            pending.popleft()
            if not len(batch.events) % _BREATH_EVENTS:
                # Lets the app's threads have the interpreter: it is taken from us only every 5 ms.
                time.sleep(0)
        self._ring.supersede(superseded)
        lane.pass_through(superseded)

    @staticmethod
    def _note_number(lane: Lane, batch: Batch) -> None:
        if not lane.batches:
            # With its first number, not when it is full: whatever goes wrong from here on, the number is not lost.
            lane.batches.append(batch)
        lane.last += 1

    async def _deliver(self, lane: Lane, batch: Batch) -> None:
        """Sends the lane's first batch once, and puts what follows from the answer in its place."""
        # No event may come that leads to a look at the spool, and what is on its way is to go there too.
        alarm = asyncio.get_running_loop().call_later(AWAY_SECONDS + LINGER_SECONDS, self._has_records.set)
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
            if not batch.is_spooled and self._must_spool():
                self._has_records.set()
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:
            batch.is_fate_unknown = True
            raise
        else:
            lane.acknowledged += len(batch.events)
            lane.delivered += batch.event_count
            self._finish_batch(lane, batch)
        finally:
            alarm.cancel()

    def _finish_batch(self, lane: Lane, batch: Batch) -> None:
        lane.batches.popleft()
        self._ring.release(batch.size_bytes)
        lane.pass_through(batch.event_count)
        if batch.on_done is not None:
            try:
                batch.on_done()
            except SpoolError as error:
                # It stays there and is sent once more by the next process: a repeat, which readers drop.
                self._warnings.warn("spool_not_written", reason=str(error))

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
        """Waits for a partition that the metadata lack; where it stays away, gives its batches up
        and moves the rest.
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
            record.route.partition = partition_of(record.route.key_text(), len(partitions))
            self.lane(record.route.partition).enter([record])
        lane.pass_through(count)

    async def _report(self) -> None:
        await asyncio.sleep(FIRST_REPORT_SECONDS)
        while True:
            await self._link.wait_until_up()
            self._every_report()
            self.next_report_lane().ask_for_report()
            await asyncio.sleep(REPORT_SECONDS)

    def next_report_lane(self) -> Lane:
        """Reports go round the lanes, which keeps quiet ones known."""
        partitions = self._link.partitions()
        known = sorted(partition for partition in self._ledger.lanes if partition in partitions)
        if not known:
            return self.lane(partition_of(self._ledger.emitter.encode(), len(partitions) or 1))
        self._report_turn += 1
        return self.lane(known[self._report_turn % len(known)])

    async def _flush(self) -> None:
        await self._link.wait_until_up()
        while self._move() is None:  # noqa: ASYNC110 - aiokafka has no event for a topic that is back
            await asyncio.sleep(RETRY_SECONDS)
        while True:
            # Asked first: what leaves the spool is in the lanes, and they are waited for next. What goes there from the
            # lanes meanwhile takes another round.
            is_last_round, times_spooled = not self._spool.own_event_count, self._times_spooled
            await asyncio.gather(*(lane.settle() for lane in list(self._ledger.lanes.values())))
            if is_last_round and times_spooled == self._times_spooled:
                return
            self._replay.has_events.set()
            await asyncio.sleep(LINGER_SECONDS)

    async def _secure(self) -> None:
        if not self._must_spool():
            try:
                async with asyncio.timeout(AWAY_SECONDS):
                    await self._flush()
                return
            except TimeoutError:
                pass
        try:
            self._put_in_spool()
        except SpoolError:
            # Said and counted there.
            pass

    async def _finish(self) -> None:
        await self._flush()
        for lane in list(self._ledger.lanes.values()):
            await lane.is_idle.wait()
        self._is_finishing = True
        lane = self.next_report_lane()
        lane.ask_for_report()
        await lane.is_idle.wait()

    def put_rest_away(self) -> None:
        """At the end: puts what was not sent into the spool, for the next process. Without one, what never got a number
        is dropped; what got one may be in the log: the gap, if there is one, says so.
        """
        try:
            self._put_in_spool()
        except SpoolError:
            self._drop_rest()
        delivery = self._ledger.delivery()
        if delivery.spooled:
            log.warning("events_left_in_spool", events=delivery.spooled, consequence="the next process sends them")
        self._spool.close()

    def _drop_rest(self) -> None:
        rest = self._ring.take()
        for lane in self._ledger.lanes.values():
            rest += lane.pending
            lane.pending.clear()
        self._ring.drop(rest, "closed")
        unacknowledged = sum(len(batch.events) for lane in self._ledger.lanes.values() for batch in lane.batches)
        if rest or unacknowledged:
            log.warning("events_left_unsent", dropped=len(rest), unacknowledged=unacknowledged)
