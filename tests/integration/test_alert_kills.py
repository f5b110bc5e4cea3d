"""Alerts through kills of evaluator and publisher at every step that reaches the store or Kafka, on both stores."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtap_consumers.alerts.backtest import replay
from runtap_consumers.alerts.rule_source import RuleSource
from runtap_consumers.alerts.statements import read_group, read_history
from runtap_consumers.alerts.windows import SETTLE_NS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from runtap_schemas import Alert, decode_alert
from store_figures import Figures
from topic_log import read_values

CROSSINGS = 500
SERVICES = 25
RULE = """
[[rule]]
id = "spend"
what = "cost"
window = "2m"
above = "10"
group_by = ["service"]
"""
POINTS = ("begin", "commit", "committed", "publish", "published")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["runtap_consumers.alerts.loop", "test_alert_kills"])


def live(settings: dict[str, Any], events: str, now: Any, steps: int, died_at: Any) -> None:
    """The evaluator and publisher, as a worker runs them, until the step at which it is killed. Its clock is `now`."""
    from runtap_consumers.alerts import evaluator, loop
    from runtap_consumers.kafka.client import Publisher
    from runtap_consumers.store.writer import Writer

    left = steps

    def step(point: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            died_at.value = POINTS.index(point)
            os.kill(os.getpid(), signal.SIGKILL)

    transaction, publish = Writer.transaction, Publisher.publish

    @contextmanager
    def counted_transaction(writer: Writer) -> Iterator[None]:
        step("begin")
        with transaction(writer):
            yield
            step("commit")
        step("committed")

    async def counted_publish(publisher: Publisher, *arguments: Any) -> None:
        step("publish")
        await publish(publisher, *arguments)
        step("published")

    Writer.transaction = counted_transaction  # type: ignore[method-assign,assignment]
    Publisher.publish = counted_publish  # type: ignore[method-assign,assignment]
    evaluator.AlertEvaluator.now_ns = lambda _: now.value  # type: ignore[method-assign,assignment]
    # Of a clock that leaps, a minute is as long as a life.
    evaluator.NEW_ALERTS_A_MINUTE = 10**6
    loop.ROUND_SECONDS = 0.02
    store = open_store(settings["database_url"], events)
    asyncio.run(loop.run_alerts(store, ConsumerSettings.load(**settings), asyncio.Event()))


class Lives:
    """One life after the other."""

    def __init__(self, settings: dict[str, Any], events: str, start_ns: int, seed: int) -> None:
        self._arguments, self._numbers = (settings, events), random.Random(seed)
        self.now = _CONTEXT.Value("q", start_ns)
        self._died_at = _CONTEXT.Value("i", -1)
        self.deaths: Counter[str] = Counter()
        self._process: Any = None
        self._start()

    def _start(self) -> None:
        # Some lives are long enough to have much to say.
        steps = self._numbers.choice((self._numbers.randrange(1, 30), self._numbers.randrange(30, 200)))
        self._died_at.value = -1
        arguments = (*self._arguments, self.now, steps, self._died_at)
        self._process = _CONTEXT.Process(target=live, args=arguments, daemon=True)
        self._process.start()

    def keep(self) -> None:
        """Starts another life where the last one is over."""
        if self._process.is_alive():
            return
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL, self._process.exitcode
        self.deaths[POINTS[self._died_at.value]] += 1
        # The lease of the dead ends.
        self.now.value += 10 * SECOND_NS
        self._start()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def expected(spent: dict[str, dict[int, float]], start_ns: int, end_ns: int) -> set[tuple[str, str, int]]:
    """What a two-minute window above ten dollars says, service by service, by a plain walk over the minutes."""
    found = set()
    for service, minutes in spent.items():
        is_firing = False
        for end in range(start_ns + MINUTE_NS, end_ns + MINUTE_NS, MINUTE_NS):
            cost = sum(minutes.get(end - back * MINUTE_NS, 0) for back in (1, 2))
            if (cost >= 10) != is_firing:
                is_firing = not is_firing
                found.add((service, "firing" if is_firing else "resolved", end))
    return found


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_kills_at_every_step_neither_lose_nor_make_an_alert(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Coroutine[Any, Any, str]], store_url: str, tmp_path: Path
) -> None:
    events = asyncio.run(events_topic(partitions=1))
    file = tmp_path / "rules.toml"
    file.write_text(RULE)
    settings: dict[str, Any] = {
        "bootstrap_servers": kafka,
        "topic_prefix": topic_prefix,
        "database_url": store_url,
        "alert_learning_seconds": 0.0,
        "alerts": str(file),
    }
    store = open_store(store_url, events)
    figures, numbers = Figures(store), random.Random(500)
    figures.position()
    start_ns = (store.created_at_ns // DAY_NS + 1) * DAY_NS + 10 * HOUR_NS
    lives = Lives(settings, events, start_ns + SECOND_NS, seed=17)
    spent: dict[str, dict[int, float]] = {f"service-{number:02}": {} for number in range(SERVICES)}
    minute_ns, crossings = start_ns, 0
    # The first round says from where on windows are judged.
    _wait(lives, figures, lambda: bool(figures.query("SELECT 1 FROM alert_marks WHERE projection = 'cost'")))
    while crossings < CROSSINGS:
        for service in numbers.sample(sorted(spent), SERVICES // 2):
            dollars = numbers.choice((1, 4, 7, 12))
            spent[service][minute_ns] = spent[service].get(minute_ns, 0) + dollars
            figures.spend(minute_ns, dollars, service=service)
            lives.keep()
        time.sleep(numbers.choice((0, 0.02, 0.2)))
        # Nothing is judged by a clock that an unfinished minute is ahead of.
        minute_ns += MINUTE_NS
        lives.now.value = max(lives.now.value, minute_ns + SETTLE_NS)
        if lives.now.value - minute_ns > MINUTE_NS:
            minute_ns = lives.now.value // MINUTE_NS * MINUTE_NS
        crossings = len(expected(spent, start_ns, minute_ns))
    end_ns = minute_ns + 5 * MINUTE_NS
    lives.now.value = max(lives.now.value, end_ns + SETTLE_NS)
    wanted = expected(spent, start_ns, end_ns)

    def is_all_said() -> bool:
        (judged,) = figures.query("SELECT judged_to_ns FROM alert_marks WHERE projection = 'cost'")[0]
        due = figures.query("SELECT count(*) FROM alert_outbox WHERE published = 0")[0][0]
        return judged >= end_ns and not due

    _wait(lives, figures, is_all_said)
    lives.end()
    deaths = sum(lives.deaths.values())
    published = [decode_alert(value or b"") for _, value in read_values(kafka, f"{topic_prefix}.alerts")]
    once = {alert.id: alert for alert in published}
    with open_snapshot(store) as snapshot:
        said = {
            (read_group(row.group_values)[0], row.status, row.window_to_ns) for row in read_history(snapshot, 0, 2**62)
        }
    assert said == wanted
    assert len(once) == len(said) >= CROSSINGS
    assert {_facts(alert) for alert in once.values()} == wanted
    # Each life that died had at most one record under way.
    assert len(published) - len(once) <= deaths
    assert set(lives.deaths) == set(POINTS), lives.deaths
    assert deaths >= 40
    state = dict(read_values(kafka, f"{topic_prefix}.alerts.state"))
    firing = {key for key, value in state.items() if value is not None}
    ended = {alert.incident_id for alert in once.values() if alert.status == "resolved"}
    assert firing == {alert.key.encode() for alert in once.values() if alert.incident_id not in ended}
    found = replay(store, RuleSource(ConsumerSettings.load(**settings)).rules(), start_ns, end_ns, lives.now.value)
    assert (found.missing, found.more) == ([], [])
    assert len(found.revised) <= len(said) / 100
    print(json.dumps({"crossings": len(said), "deaths": lives.deaths, "repeats": len(published) - len(once)}))  # noqa: T201
    figures.close()
    store.close()


def _facts(alert: Alert) -> tuple[str, str, int]:
    from datetime import datetime

    assert alert.window is not None
    return alert.group["service"], alert.status, int(datetime.fromisoformat(alert.window.to).timestamp()) * 10**9


def _wait(lives: Lives, figures: Figures, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert time.monotonic() < deadline
        lives.keep()
        time.sleep(0.05)
