"""The alert loop: every second a round of the evaluator, then what it stored goes to Kafka.

State and outbox row are one transaction, the record comes after it: an alert is published at least once, a repeat with
the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from runtap_consumers.alerts.evaluator import AlertEvaluator
from runtap_consumers.errors import KafkaUnavailableError, StoreError
from runtap_consumers.kafka.client import Publisher, TopicEnds
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_schemas.alerts import alert_headers, decode_alert
from runtap_schemas.topics import alerts_state_topic, alerts_topic

ROUND_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 30.0

_logger = structlog.get_logger(__name__)


async def run_alerts(
    store: Store, settings: ConsumerSettings, stop: asyncio.Event, on_round: Callable[[], None] = lambda: None
) -> None:
    """Evaluates and publishes until `stop` is set; an outage of Kafka or of the store is logged once and waited out.

    Args:
        store: whose figures are judged.
        settings: of the rules, and how to reach Kafka.
        stop: ends the loop, at most one round later.
        on_round: called after each round that went through, for a health check.
    """
    failures = 0
    while not stop.is_set():
        try:
            async with TopicEnds(settings, store.events_topic) as ends, Publisher(settings) as publisher:
                evaluator, thread = AlertEvaluator(store, settings), ThreadPoolExecutor(1, "runtap-alerts")
                try:
                    while not stop.is_set():
                        began = time.monotonic()
                        await _run_round(evaluator, thread, ends, publisher, store, settings.topic_prefix)
                        on_round()
                        if failures:
                            _logger.info("alerts_resumed", failures=failures)
                            failures = 0
                        # A quarter of a core at most.
                        await _sleep(stop, max(ROUND_SECONDS, 3 * (time.monotonic() - began)))
                finally:
                    # In the thread that evaluates: if the round was cancelled it may be at work, and closing SQLite's
                    # connection under it crashes the process.
                    closing = asyncio.get_running_loop().run_in_executor(thread, evaluator.close)
                    thread.shutdown(wait=False)
                    await asyncio.shield(closing)
        except (KafkaUnavailableError, StoreError) as error:
            if not failures:
                _logger.warning("alerts_interrupted", error=str(error))
            failures += 1
            longest = min(_LONGEST_BACK_OFF_SECONDS, ROUND_SECONDS * 2**failures)
            await _sleep(stop, random.uniform(longest / 2, longest))


async def _run_round(
    evaluator: AlertEvaluator,
    thread: ThreadPoolExecutor,
    ends: TopicEnds,
    publisher: Publisher,
    store: Store,
    topic_prefix: str,
) -> None:
    in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
    # In this order (now, log ends, positions), or a record that comes in between would count as applied.
    now_ns = await in_thread(evaluator.now_ns)
    log_ends = await ends.read()
    raised = await in_thread(evaluator.evaluate, now_ns, log_ends)
    if raised:
        _logger.info("alerts_raised", alerts=raised)
    if not evaluator.holds_lease:
        return
    for row in await in_thread(evaluator.outbox):
        alert = decode_alert(row.payload)
        key = alert.key.encode()
        await publisher.publish(alerts_topic(topic_prefix), key, row.payload, alert_headers(alert, store.store_id))
        if alert.status != "noticed":
            # What fires now, for whoever comes later: nothing of it once it is resolved.
            value = row.payload if alert.status == "firing" else None
            await publisher.publish(alerts_state_topic(topic_prefix), key, value, alert_headers(alert, store.store_id))
        await in_thread(evaluator.mark_published, row.id)
        _logger.info("alert_published", id=row.id, status=row.status)


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
