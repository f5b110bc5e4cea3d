"""The alert evaluator on both stores, and what it publishes on real Kafka."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs

from runtap_consumers.alerts.backtest import replay
from runtap_consumers.alerts.evaluator import LEASE_NS, AlertEvaluator, _watermark
from runtap_consumers.alerts.loop import run_alerts
from runtap_consumers.alerts.rule_file import default_text
from runtap_consumers.alerts.rules.threshold import Threshold
from runtap_consumers.alerts.windows import SETTLE_NS
from runtap_consumers.kafka.client import Publisher
from runtap_consumers.kafka.record_tail import TailedRecord, tail_records
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dead_letters import DeadLetter
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.read.snapshot import open_snapshot, read_alerts
from runtap_consumers.store.writer import SqliteWriter, Writer
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS, minute_of
from runtap_consumers.worker.dead_letters import publish_dead_letters
from runtap_schemas import decode_alert
from store_figures import Figures
from worker_process import wait_until

EVENTS = "test.events"


DEFAULT = default_text()


class Rounds:
    """An evaluator that is asked to go round."""

    def __init__(self, figures: Figures, settings: ConsumerSettings) -> None:
        self.evaluator = AlertEvaluator(figures.store, settings)
        self._figures = figures

    def go(self, now_ns: int, watermark_ns: int | None = None) -> int:
        """A round. `watermark_ns`: up to which log time all is applied; `None`: all there is."""
        if watermark_ns is None:
            return self.evaluator.evaluate(now_ns, {0: 0})
        self._figures.position(log_time_ns=watermark_ns)
        return self.evaluator.evaluate(now_ns, {0: 1})


def rules(folder: Path, text: str) -> ConsumerSettings:
    """Settings with a file of these rules."""
    file = folder / "rules.toml"
    file.write_text(text)
    return ConsumerSettings.load(alert_learning_seconds=0.0, alerts=str(file))


@pytest.fixture
def figures(store_url: str) -> Iterator[Figures]:
    store = open_store(store_url, EVENTS)
    made = Figures(store)
    made.position()
    yield made
    made.close()
    store.close()


@pytest.fixture
def now_ns(figures: Figures) -> int:
    """Half a minute into an hour of the day after the store was made."""
    figures.at_ns = (figures.store.created_at_ns // DAY_NS + 1) * DAY_NS + 10 * HOUR_NS + 30 * 10**9
    return figures.at_ns


@pytest.fixture
def make_rounds(figures: Figures, tmp_path: Path) -> Iterator[Callable[[str], Rounds]]:
    made: list[Rounds] = []

    def make(text: str) -> Rounds:
        made.append(Rounds(figures, rules(tmp_path, text)))
        return made[-1]

    yield make
    for each in made:
        each.evaluator.close()


MakeRounds = Callable[[str], Rounds]
COST_RULE = """
[[rule]]
id = "spend"
what = "cost"
window = "5m"
above = "10"
critical = "100"
recover = "5"
group_by = ["service"]
"""


def test_error_rate_fires_once_over_a_minute_that_is_over_and_is_resolved_once(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(DEFAULT), now_ns - now_ns % MINUTE_NS
    assert rounds.go(now_ns) == 0
    figures.roots(minute, 10, 20)
    assert rounds.go(now_ns + 1) == 0
    assert rounds.go(minute + MINUTE_NS + 1) == 0
    assert rounds.go(minute + MINUTE_NS + SETTLE_NS) == 1
    for seconds in range(2, 200, 7):
        assert rounds.go(minute + MINUTE_NS + seconds * 10**9) == 0
    figures.roots(minute + 4 * MINUTE_NS, 500, 0)
    assert rounds.go(minute + 5 * MINUTE_NS + SETTLE_NS) == 1
    fired, resolved = figures.alerts()
    assert (fired.id, fired.status, fired.severity, fired.value, fired.threshold, fired.unit) == (
        *("error_rate?environment=prod&service=checkout/1", "firing", "critical"),
        *("0.666666666667", "0.1", "share"),
    )
    assert fired.window is not None
    assert fired.window.to == "2" + fired.window.to[1:]
    assert fired.sample_run_ids == [f"run-{minute}"]
    assert fired.summary == (
        "service checkout, environment prod: share of root runs that failed 66.7% in 5 minutes, at or above 10.0%"
    )
    assert fired.query.startswith("runtap report --service checkout --since 2")
    assert (resolved.status, resolved.incident_id, resolved.value) == ("resolved", fired.incident_id, "0.037735849057")


def test_service_that_falls_silent_while_it_fires_is_resolved(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(DEFAULT), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.roots(minute, 10, 20)
    assert rounds.go(minute + MINUTE_NS + SETTLE_NS) == 1
    # One partition lags: what it may still bring is no silence.
    at = minute + 6 * MINUTE_NS + SETTLE_NS
    assert rounds.go(at, at - MINUTE_NS) == 0
    figures.position()
    assert rounds.go(at) == 1
    assert rounds.go(at + HOUR_NS) == 0
    assert [(alert.status, alert.value) for alert in figures.alerts()] == [
        ("firing", "0.666666666667"),
        ("resolved", None),
    ]


def test_partitions_are_summed_and_only_the_live_generation_counts(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(DEFAULT), now_ns - now_ns % MINUTE_NS
    figures.position(partition=1, generation=2)
    rounds.go(now_ns)
    figures.roots(minute, 12, 0, partition=0)
    figures.roots(minute, 0, 100, partition=1, generation=0)
    assert rounds.go(minute + MINUTE_NS + SETTLE_NS) == 0
    figures.roots(minute, 4, 4, partition=1, generation=2)
    assert rounds.go(minute + MINUTE_NS + SETTLE_NS + 1) == 1
    assert [alert.value for alert in figures.alerts()] == ["0.2"]


def test_lagging_partition_holds_a_rate_back_and_its_late_minutes_are_judged(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(DEFAULT), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.roots(minute, 0, 20, partition=0)
    later = now_ns + 3 * MINUTE_NS
    # What partition 0 alone shows, all failed, is not judged.
    assert rounds.go(later, minute - 5 * MINUTE_NS) == 0
    figures.roots(minute, 1_000, 0, partition=0)
    figures.position()
    assert rounds.go(later + 1) == 0
    # A commit that comes after the minute's windows were judged.
    figures.roots(minute - 2 * MINUTE_NS, 0, 600)
    assert rounds.go(later + 2) == 1
    assert rounds.go(later + MINUTE_NS) == 1
    assert [alert.status for alert in figures.alerts()] == ["firing", "resolved"]


def test_touch_that_a_regressed_watermark_kept_unjudged_is_judged_later(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(DEFAULT), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.roots(minute - 10 * MINUTE_NS, 0, 50)
    assert rounds.go(now_ns + 1, minute - HOUR_NS) == 0
    assert figures.query("SELECT count(*) FROM touched_minutes")[0][0] == 0
    figures.position()
    assert rounds.go(now_ns + 2) == 2
    assert [alert.status for alert in figures.alerts()] == ["firing", "resolved"]


def test_touch_of_an_open_commit_is_seen_after_the_commit(postgres_database: str, tmp_path: Path) -> None:
    # SQLite has one writer: there is no open commit beside an evaluation.
    store = open_store(postgres_database, EVENTS)
    figures = Figures(store)
    figures.position()
    now = (store.created_at_ns // HOUR_NS + 10) * HOUR_NS + SETTLE_NS
    key = (now // MINUTE_NS * MINUTE_NS - 20 * MINUTE_NS, "checkout", "prod", 0, 0)
    rounds = Rounds(figures, rules(tmp_path, DEFAULT))
    rounds.go(now)
    # The minute was touched before, and is touched again by a commit that is still open while it is judged.
    figures.add("touched_minutes", ("errors", key[0], 0, 0, 1))
    with figures.open_commit("roots_minute", (*key, 0, 50, 0, 0, "run-1")):
        figures.touch("errors", key[0])
        assert rounds.go(now + 1) == 0
    assert rounds.go(now + 2) == 2
    assert [alert.status for alert in figures.alerts()] == ["firing", "resolved"]
    rounds.evaluator.close()
    figures.close()
    store.close()


def test_cost_fires_at_once_rises_to_critical_and_is_resolved_below_its_recovery(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(COST_RULE), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.spend(minute, 9.99)
    assert rounds.go(now_ns + 1) == 0
    # Far behind: what is there is enough.
    figures.spend(minute, 0.01)
    assert rounds.go(now_ns + 2, minute - HOUR_NS) == 1
    figures.position()
    assert rounds.go(now_ns + 3) == 0
    figures.spend(minute, 90)
    assert rounds.go(now_ns + 4) == 1
    for number in range(1, 6):
        figures.spend(minute + number * MINUTE_NS, 6)
        assert rounds.go(minute + number * MINUTE_NS + 30 * 10**9) == 0
    # Below ten, but not below the five of `recover`, for a while.
    for number in range(6, 10):
        assert rounds.go(minute + number * MINUTE_NS + 30 * 10**9) == 0
    assert rounds.go(minute + 11 * MINUTE_NS + SETTLE_NS) == 1
    fired, risen, resolved = figures.alerts()
    assert [(each.status, each.severity, each.value) for each in (fired, risen, resolved)] == [
        ("firing", "warning", "10"),
        ("firing", "critical", "100"),
        ("resolved", "warning", None),
    ]
    assert {each.incident_id for each in (fired, risen, resolved)} == {"spend?service=checkout/1"}
    assert [each.id for each in (fired, risen, resolved)] == [
        f"spend?service=checkout/{number}" for number in (1, 2, 3)
    ]
    assert fired.change is not None
    assert sum(map(Decimal, fired.change.values())) == 10
    assert "figures are 60 min behind" in fired.summary


def test_what_an_evaluation_does_is_left_out_unless_a_rule_names_it(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    by_user = COST_RULE.replace("spend", "by_user").replace("service", "user").replace("5m", "1h")
    named = COST_RULE.replace("spend", "named") + 'where = { environment = "evaluation" }\n'
    rounds, minute = make_rounds(f'{COST_RULE}{by_user}{named}[[rule]]\nid = "new"\nwhat = "new_error_group"'), now_ns
    minute -= minute % MINUTE_NS
    rounds.go(now_ns)
    figures.spend(minute, 50, user="ann", environment="evaluation")
    known = ("ValueError", "other", "boom", "tool", None, None, None, 1, now_ns, now_ns, "run-9")
    figures.add("error_groups", ("checkout", "evaluation", "fingerprint-001", 0, 0, *known))
    figures.touch("errors", minute)
    assert rounds.go(now_ns + 1) == 1
    assert [alert.id for alert in figures.alerts()] == ["named?service=checkout/1"]
    figures.spend(minute, 11, user="ann")
    assert rounds.go(now_ns + 2) == 2
    assert {(alert.rule.id, alert.value) for alert in figures.alerts()[1:]} == {("spend", "11"), ("by_user", "11")}


def test_abandoned_runs_are_those_of_traffic(figures: Figures, make_rounds: MakeRounds, now_ns: int) -> None:
    rule = '[[rule]]\nid = "stuck"\nwhat = "abandoned_runs"\nabove = "2"\ngroup_by = ["service"]\n'
    rounds = make_rounds(
        f'{rule}[[rule]]\nid = "named"\nwhat = "abandoned_runs"\nabove = "1"\nwhere = '
        '{ environment = "evaluation" }\n'
    )
    figures.add("positions", ("runs", 0, 1, 0, 0, 0, 0, "", now_ns, 0))

    def begin(number: int, environment: str | None, hours: float) -> None:
        began_ns = now_ns - int(hours * HOUR_NS)
        facts = (None, f"trace-{number}", None, None, "checkout", environment, "chain", "answer", None, None)
        figures.add("open_runs", (f"run-{number}", 0, 0, *facts, began_ns, began_ns))

    begin(1, "prod", 1.1)
    begin(2, "evaluation", 2)
    # It may end yet.
    begin(3, "prod", 0.9)
    assert rounds.go(now_ns) == 1
    begin(4, None, 30)
    assert rounds.go(now_ns + MINUTE_NS) == 1
    assert [(alert.id, alert.value) for alert in figures.alerts()] == [
        ("named/1", "1"),
        ("stuck?service=checkout/1", "2"),
    ]


def test_an_alert_of_a_rule_about_one_service_is_that_services(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rule = COST_RULE.replace('["service"]', '["model"]') + 'where = { service = "checkout" }\n'
    rounds, minute = make_rounds(rule), minute_of(now_ns)
    rounds.go(now_ns)
    figures.spend(minute, 10)
    assert rounds.go(now_ns + 1) == 1
    with open_snapshot(figures.store) as snapshot:
        listed = {
            name: len(list(read_alerts(snapshot, now_ns - DAY_NS, now_ns + DAY_NS, name)))
            for name in ("checkout", "search")
        }
    assert listed == {"checkout": 1, "search": 0}
    # Its end too, when the rule is gone.
    rounds.evaluator.close()
    make_rounds(rule.replace("spend", "other")).go(now_ns + 2)
    with open_snapshot(figures.store) as snapshot:
        assert len(list(read_alerts(snapshot, now_ns - DAY_NS, now_ns + DAY_NS, "checkout"))) == 2


def test_new_group_is_named_once(figures: Figures, make_rounds: MakeRounds, now_ns: int) -> None:
    rounds = make_rounds(DEFAULT)
    figures.groups(2)
    assert rounds.go(now_ns) == 2
    figures.groups(2)
    figures.position(partition=1)
    figures.add(
        "error_groups",
        (
            *("checkout", "staging", "fingerprint-001", 1, 0),
            *("ValueError", "other", "boom", "tool", None, None, None, 1, now_ns, now_ns, "run-9"),
        ),
    )
    assert rounds.go(now_ns + 1) == 0
    first = figures.alerts()[0]
    assert (first.id, first.status, first.value, first.sample_run_ids, first.error_type) == (
        "new_error_group?fingerprint=fingerprint-000&service=checkout/1",
        *("noticed", "2", ["run-0"], "ValueError"),
    )
    assert first.summary == "checkout: new error ValueError (other): boom 0"
    # Neither another evaluator nor rows of another generation make it new again.
    rounds.evaluator.close()
    again = make_rounds(DEFAULT)
    figures.groups(2)
    assert again.go(now_ns + 2) == 0


def test_young_store_learns_its_groups_quietly(figures: Figures) -> None:
    store = figures.store
    figures.groups(3)
    rounds = Rounds(figures, ConsumerSettings.load(alert_learning_seconds=600.0))
    assert rounds.go(store.created_at_ns + 599 * 10**9) == 0
    figures.groups(1, first=3)
    assert rounds.go(store.created_at_ns + 600 * 10**9) == 1
    assert [alert.group["fingerprint"] for alert in figures.alerts()] == ["fingerprint-003"]
    rounds.evaluator.close()


def test_alerts_beyond_fifty_a_minute_wait_for_one_summary(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds = make_rounds(DEFAULT)
    figures.groups(30)
    assert rounds.go(now_ns) == 30
    figures.groups(60, first=30)
    assert rounds.go(now_ns + 1) == 60
    published = [row.id for row in rounds.evaluator.outbox()]
    assert len(published) == 50
    assert rounds.go(now_ns + 10 * 10**9) == 0
    assert rounds.go(now_ns + MINUTE_NS) == 1
    assert rounds.go(now_ns + 2 * MINUTE_NS) == 0
    summary = figures.alerts()[-1]
    assert (summary.rule.id, summary.status, summary.value) == ("new_error_group", "noticed", "40")
    assert len(rounds.evaluator.outbox()) == 51


BUDGET = """
[[budget]]
id = "user_day"
period = "day"
limit = "10"
group_by = ["user"]
forecast = false
"""


def test_budget_by_user_says_each_level_once_and_ends_with_its_day(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(BUDGET), now_ns - now_ns % MINUTE_NS
    # Hours ago, and before this evaluator was there.
    figures.spend(minute - 5 * HOUR_NS, 4, user="ann")
    figures.spend(minute - 5 * HOUR_NS, 4, user="bob")
    assert rounds.go(now_ns) == 0
    figures.spend(minute, 1, user="ann")
    assert rounds.go(now_ns + 1) == 1
    assert rounds.go(now_ns + 2) == 0
    # Both levels at once: the higher one is said.
    figures.spend(minute, 6, user="ann")
    assert rounds.go(now_ns + 3) == 1
    # A late commit, of hours ago.
    figures.spend(minute - 4 * HOUR_NS, 1, user="bob")
    assert rounds.go(now_ns + 4) == 1
    tomorrow = (now_ns // DAY_NS + 1) * DAY_NS
    figures.spend(tomorrow + MINUTE_NS, 1, user="cat")
    assert rounds.go(tomorrow + 2 * MINUTE_NS) == 2
    found = [(alert.group["user"], alert.status, alert.severity, alert.value) for alert in figures.alerts()]
    assert found == [
        ("ann", "firing", "warning", "5"),
        ("ann", "firing", "critical", "11"),
        ("bob", "firing", "warning", "5"),
        ("ann", "resolved", "warning", None),
        ("bob", "resolved", "warning", None),
    ]
    assert figures.alerts()[1].threshold == "10"
    assert "runtap costs --by user" in figures.alerts()[0].query


def test_what_comes_late_counts_in_a_budget_of_which_hours_were_added_up_before(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    rounds, minute = make_rounds(BUDGET), now_ns - now_ns % MINUTE_NS
    figures.spend(minute - 5 * HOUR_NS, 4, user="ann")
    figures.spend(minute, 0.6, user="ann")
    assert rounds.go(now_ns) == 0
    # With what was spent after it, this is half of ten.
    figures.spend(minute - 4 * HOUR_NS, 0.5, user="ann")
    assert rounds.go(now_ns + 1) == 1
    assert figures.alerts()[0].value == "5.1"


def test_file_that_changes_is_read_again_and_one_with_a_mistake_is_not(
    figures: Figures, make_rounds: MakeRounds, now_ns: int, tmp_path: Path
) -> None:
    rounds, minute = make_rounds(COST_RULE), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.spend(minute, 7)
    assert rounds.go(now_ns + 1) == 0
    with capture_logs() as logs:
        rules(tmp_path, COST_RULE + 'windo = "1m"\n')
        assert rounds.go(now_ns + 2) == 0
        assert rounds.go(now_ns + 3) == 0
    refused = [entry for entry in logs if entry["event"] == "alert_rules_refused"]
    assert len(refused) == 1
    assert "rule 'spend': windo: there is no such key" in refused[0]["reason"]
    rules(tmp_path, COST_RULE.replace('"10"', '"7"'))
    figures.spend(minute, 0)
    assert rounds.go(now_ns + 4) == 1
    # A rule that is taken out fires no more.
    rules(tmp_path, DEFAULT)
    assert rounds.go(now_ns + 5) == 1
    fired, resolved = figures.alerts()
    assert (resolved.status, resolved.incident_id) == ("resolved", fired.incident_id)
    rules(tmp_path, COST_RULE.replace('"10"', '"7"'))
    figures.spend(minute, 0)
    assert rounds.go(now_ns + 6) == 1
    assert len({alert.id for alert in figures.alerts()}) == 3


def test_a_rule_with_a_bug_stops_no_other(
    figures: Figures, make_rounds: MakeRounds, now_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, minute = make_rounds(COST_RULE + COST_RULE.replace('"spend"', '"broken"')), now_ns - now_ns % MINUTE_NS
    step = Threshold.step

    def break_one(rule: Threshold, *arguments: Any) -> Any:
        if rule.settings.id == "broken":
            raise ZeroDivisionError
        return step(rule, *arguments)

    monkeypatch.setattr(Threshold, "step", break_one)
    rounds.go(now_ns)
    figures.spend(minute, 12)
    with capture_logs() as logs:
        assert rounds.go(now_ns + 1) == 1
        figures.spend(minute, 1)
        assert rounds.go(now_ns + 2) == 0
    assert [entry["rule"] for entry in logs if entry["event"] == "alert_rule_failed"] == ["broken"]
    assert [alert.rule.id for alert in figures.alerts()] == ["spend"]


def test_back_test_says_what_was_said(figures: Figures, make_rounds: MakeRounds, now_ns: int) -> None:
    rounds, minute = make_rounds(DEFAULT + COST_RULE), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    numbers = random.Random(5)
    for number in range(90):
        begin = minute + number * MINUTE_NS
        for _ in range(numbers.randrange(3)):
            figures.spend(begin, numbers.choice((0.5, 3, 12, 70)))
            figures.roots(begin, numbers.randrange(30), numbers.choice((0, 0, 1, 9)))
            rounds.go(begin + numbers.randrange(1, 30 * 10**9))
        rounds.go(begin + 31 * 10**9)
    end = minute + 90 * MINUTE_NS
    rounds.go(end + SETTLE_NS)
    raised = figures.alerts()
    assert {alert.status for alert in raised} == {"firing", "resolved"}
    assert {alert.rule.id for alert in raised} == {"error_rate", "spend"}
    found = replay(figures.store, rounds.evaluator.rules, minute, end, end + SETTLE_NS)
    assert (found.equal, found.missing, found.more, found.revised) == (len(raised), [], [], [])
    # Without what was said last, and with other limits, it differs.
    last = figures.query("SELECT id FROM alert_outbox ORDER BY at_ns DESC LIMIT 1")[0][0]
    with figures._writer.transaction():
        figures._writer.execute("DELETE FROM alert_outbox WHERE id = ?", (last,))
    assert len(replay(figures.store, rounds.evaluator.rules, minute, end, end + SETTLE_NS).more) == 1


def test_the_same_figures_raise_the_same_alerts_whenever_they_are_judged(
    figures: Figures, make_rounds: MakeRounds, now_ns: int, tmp_path: Path
) -> None:
    live = make_rounds(DEFAULT + COST_RULE.replace('critical = "100"\n', ""))
    minute, numbers = now_ns - now_ns % MINUTE_NS, random.Random(9)
    live.go(now_ns)
    for number in range(120):
        begin = minute + number * MINUTE_NS
        for _ in range(numbers.randrange(3)):
            # Now and then of a minute or two ago: of what fires at once, that would revise what was said.
            late = numbers.choice((0, 0, 0, 1, 2)) * MINUTE_NS
            figures.spend(begin, numbers.choice((0.5, 3, 12, 70)))
            figures.roots(max(begin - late, minute), numbers.randrange(30), numbers.choice((0, 0, 1, 9)))
            if numbers.random() < 0.7:
                # A partition is behind by what may still come.
                live.go(begin + numbers.randrange(1, 30 * 10**9), begin - 2 * MINUTE_NS + SETTLE_NS)
    end = minute + 120 * MINUTE_NS + SETTLE_NS
    figures.position()
    live.go(end)
    said = [(alert.id, alert.status, alert.window) for alert in figures.alerts() if alert.window]
    assert len(said) > 20
    # The same, judged at once: as after a day without an evaluator.
    for table in ("alert_lease", "alert_states", "alert_outbox", "alert_marks"):
        with figures._writer.transaction():
            figures._writer.execute(f"DELETE FROM {table}")
    again = make_rounds(DEFAULT + COST_RULE.replace('critical = "100"\n', ""))
    again.go(now_ns)
    figures.touch("cost", minute)
    figures.touch("errors", minute)
    again.go(end)
    found = [(alert.id, alert.status, alert.window) for alert in figures.alerts() if alert.window]
    assert sorted(found, key=str) == sorted(said, key=str)


def test_two_evaluators_at_once_raise_each_alert_once(figures: Figures, now_ns: int, tmp_path: Path) -> None:
    settings, minute = rules(tmp_path, DEFAULT), now_ns - now_ns % MINUTE_NS
    warm = Rounds(figures, settings)
    warm.go(now_ns - 2 * LEASE_NS)
    warm.evaluator.close()
    figures.groups(10)
    figures.roots(minute, 0, 50)
    counts: list[int] = []
    barrier = threading.Barrier(4)

    def compete() -> None:
        with AlertEvaluator(figures.store, settings) as evaluator:
            barrier.wait()
            raised = 0
            for step in range(10):
                # Each lease has run out by the next step: every round may change hands.
                raised += evaluator.evaluate(now_ns + step * 2 * LEASE_NS, {0: 0})
            counts.append(raised)

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alerts = figures.alerts()
    assert len(alerts) == len({alert.id for alert in alerts}) == sum(counts) == 11


def test_other_evaluator_waits_for_the_lease_of_one_that_died(
    figures: Figures, make_rounds: MakeRounds, now_ns: int
) -> None:
    died, other = make_rounds(DEFAULT), make_rounds(DEFAULT)
    assert died.go(now_ns) == 0
    figures.groups(1)
    assert other.go(now_ns + LEASE_NS - 1) == 0
    assert not other.evaluator.holds_lease
    assert other.go(now_ns + LEASE_NS) == 1
    assert other.evaluator.holds_lease
    assert died.go(now_ns + LEASE_NS + 1) == 0
    assert not died.evaluator.holds_lease


def test_round_that_lost_its_lease_while_it_judged_writes_nothing(
    figures: Figures, make_rounds: MakeRounds, now_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = make_rounds(DEFAULT), make_rounds(DEFAULT)
    figures.groups(1)
    write = AlertEvaluator._write

    def write_late(evaluator: AlertEvaluator, *arguments: Any) -> bool:
        monkeypatch.setattr(AlertEvaluator, "_write", write)
        assert other.go(now_ns + LEASE_NS) == 1
        return write(evaluator, *arguments)

    monkeypatch.setattr(AlertEvaluator, "_write", write_late)
    assert slow.go(now_ns) == 0
    assert not slow.evaluator.holds_lease
    assert len(figures.alerts()) == 1


def test_what_a_commit_touched_while_it_was_judged_is_judged_again(
    figures: Figures, make_rounds: MakeRounds, now_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, minute = make_rounds(COST_RULE), now_ns - now_ns % MINUTE_NS
    rounds.go(now_ns)
    figures.spend(minute, 9)
    write = AlertEvaluator._write

    def write_after_a_commit(evaluator: AlertEvaluator, *arguments: Any) -> bool:
        monkeypatch.setattr(AlertEvaluator, "_write", write)
        figures.spend(minute, 2)
        return write(evaluator, *arguments)

    monkeypatch.setattr(AlertEvaluator, "_write", write_after_a_commit)
    assert rounds.go(now_ns + 1) == 0
    assert rounds.go(now_ns + 2) == 1


def test_closed_evaluator_gives_its_lease_back(figures: Figures, make_rounds: MakeRounds, now_ns: int) -> None:
    first, second = make_rounds(DEFAULT), make_rounds(DEFAULT)
    first.go(now_ns)
    first.evaluator.close()
    second.go(now_ns + 1)
    assert second.evaluator.holds_lease


def test_figures_are_complete_up_to_the_least_log_time_and_now_at_the_end(figures: Figures, now_ns: int) -> None:
    figures.position(partition=0, next_offset=10, log_time_ns=now_ns - 5)
    figures.position(partition=1, next_offset=20, log_time_ns=now_ns - 7)

    def watermark(ends: dict[int, int]) -> int:
        with open_snapshot(figures.store) as snapshot:
            return _watermark(snapshot, "errors", ends, now_ns)

    assert watermark({0: 10, 1: 20}) == now_ns
    assert watermark({0: 11, 1: 20}) == now_ns - 5
    assert watermark({0: 11, 1: 21}) == now_ns - 7
    # Nobody has read partition 2 yet, but it is empty; of partition 3 nothing is applied.
    assert watermark({0: 10, 1: 20, 2: 0}) == now_ns
    assert watermark({0: 10, 1: 20, 3: 1}) == 0
    # The log was made again, and the worker has not noticed.
    assert watermark({0: 4, 1: 20}) == now_ns - 5


async def _records(settings: ConsumerSettings, topic: str, count: int) -> list[TailedRecord]:
    records = []
    async with asyncio.timeout(20):
        async for record in tail_records(settings, topic, from_beginning=True):
            records.append(record)
            if len(records) == count:
                break
    return records


async def test_alert_is_published_with_the_same_id_after_a_stop_between_outbox_and_kafka(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]], store_url: str
) -> None:
    events = await events_topic(partitions=2)
    settings = ConsumerSettings.load(
        bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=store_url, alert_learning_seconds=0.0
    )
    store = open_store(store_url, events)
    figures = Figures(store)
    figures.position()
    figures.groups(1)
    # It stored the alert, sent it, and died before it could note the acknowledgement.
    died = AlertEvaluator(store, settings)
    at = store.created_at_ns + 1
    assert died.evaluate(at, {0: 0, 1: 0}) == 1
    stored = died.outbox()
    async with Publisher(settings) as publisher:
        await publisher.publish(f"{topic_prefix}.alerts", b"checkout", stored[0].payload)
    died.close()
    stop = asyncio.Event()
    loop = asyncio.create_task(run_alerts(store, settings, stop))
    records = await _records(settings, f"{topic_prefix}.alerts", 2)
    figures.groups(1, first=1)
    records = await _records(settings, f"{topic_prefix}.alerts", 3)
    stop.set()
    await asyncio.wait_for(loop, 5)
    ids = [decode_alert(record.value or b"").id for record in records]
    second = "new_error_group?fingerprint=fingerprint-001&service=checkout"
    assert ids == [stored[0].id, stored[0].id, f"{second}/1"]
    assert [record.key for record in records[1:]] == [stored[0].id.removesuffix("/1").encode(), second.encode()]
    headers = dict(records[-1].headers)
    assert headers.pop("ce_time").endswith(b"Z")
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": f"{second}/1".encode(),
        "ce_source": f"/runtap/{store.store_id}".encode(),
        "ce_type": b"runtap.alert.noticed",
        "ce_subject": second.encode(),
        "content-type": b"application/json",
        "correlation_id": f"{second}/1".encode(),
    }
    assert figures.query("SELECT count(*) FROM alert_outbox WHERE published = 0")[0][0] == 0
    figures.close()
    store.close()


async def test_alert_loop_outlives_a_database_that_ends_its_connections(
    kafka: str,
    topic_prefix: str,
    events_topic: Callable[..., Awaitable[str]],
    postgres_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtap_consumers.alerts.loop.ROUND_SECONDS", 0.1)
    settings = ConsumerSettings.load(
        bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=postgres_database, alert_learning_seconds=0.0
    )
    store = open_store(postgres_database, await events_topic(partitions=1))
    figures = Figures(store)
    figures.position()
    rounds: list[int] = []
    stop = asyncio.Event()
    with capture_logs() as logs:
        loop = asyncio.create_task(run_alerts(store, settings, stop, lambda: rounds.append(1)))
        figures.groups(1)
        await _records(settings, f"{topic_prefix}.alerts", 1)
        for _ in range(3):
            figures.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.3)
        figures.groups(1, first=1)
        await _records(settings, f"{topic_prefix}.alerts", 2)
        stop.set()
        await asyncio.wait_for(loop, 5)
    names = [entry["event"] for entry in logs]
    assert 1 <= names.count("alerts_interrupted") <= 3
    assert names.count("alerts_resumed") == names.count("alerts_interrupted")
    assert rounds
    figures.close()
    store.close()


async def test_alert_loop_outlives_an_unreachable_kafka_and_stops_at_once(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtap_consumers.alerts.loop.ROUND_SECONDS", 0.05)
    settings = ConsumerSettings.load(bootstrap_servers="127.0.0.1:1", database_url=store_url)
    store = open_store(store_url, "runtap.events")
    stop = asyncio.Event()
    with capture_logs() as logs:
        loop = asyncio.create_task(run_alerts(store, settings, stop))
        await asyncio.sleep(1)
        assert not loop.done()
        stop.set()
        await asyncio.wait_for(loop, 2)
    interrupted = [entry for entry in logs if entry["event"] == "alerts_interrupted"]
    assert len(interrupted) == 1
    assert "127.0.0.1:1" in interrupted[0]["error"]
    store.close()


async def test_the_store_is_not_closed_under_an_evaluation_of_a_cancelled_loop(
    kafka: str,
    topic_prefix: str,
    events_topic: Callable[..., Awaitable[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    store = open_store(f"sqlite:///{tmp_path / 'runtap.db'}", await events_topic(partitions=1))
    begun, may_end, done = threading.Event(), threading.Event(), list[str]()
    evaluate, close = AlertEvaluator.evaluate, AlertEvaluator.close

    def wait_and_evaluate(evaluator: AlertEvaluator, now_ns: int, ends: dict[int, int]) -> int:
        begun.set()
        may_end.wait(10)
        raised = evaluate(evaluator, now_ns, ends)
        done.append(f"evaluated, lease held: {evaluator.holds_lease}")
        return raised

    def note_and_close(evaluator: AlertEvaluator) -> None:
        close(evaluator)
        done.append("closed")

    monkeypatch.setattr(AlertEvaluator, "evaluate", wait_and_evaluate)
    monkeypatch.setattr(AlertEvaluator, "close", note_and_close)
    loop = asyncio.create_task(run_alerts(store, settings, asyncio.Event()))
    assert await asyncio.to_thread(begun.wait, 10)
    loop.cancel()
    await asyncio.wait({loop}, timeout=0.3)
    # Again, as a process that ends does it: the close must come all the same.
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert done == []
    may_end.set()
    await asyncio.to_thread(wait_until, lambda: done == ["evaluated, lease held: True", "closed"], 10)
    store.close()


async def test_the_store_is_not_closed_under_a_mark_of_a_cancelled_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'runtap.db'}", "runtap.events")
    Figures(store).add("dead_letters", ("id-1", 3, 17, 1, "not an event", None, None, 1, b"trace", b"", 0))
    begun, may_end, done = threading.Event(), threading.Event(), list[str]()

    def mark(writer: Writer, letter: DeadLetter) -> None:
        begun.set()
        may_end.wait(10)
        done.append("marked")

    monkeypatch.setattr("runtap_consumers.worker.dead_letters._mark", mark)
    monkeypatch.setattr(SqliteWriter, "close", lambda writer: done.append("closed"))
    publishing = asyncio.create_task(publish_dead_letters(store, AsyncMock(), "dead-letters", [3]))
    await asyncio.to_thread(begun.wait, 10)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert done == []
    may_end.set()
    await asyncio.to_thread(wait_until, lambda: done == ["marked", "closed"], 10)
    store.close()


async def test_dead_letters_are_published_as_they_were_and_once(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]], store_url: str
) -> None:
    events = await events_topic()
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, database_url=store_url)
    store = open_store(store_url, events)
    figures = Figures(store)
    topic = f"{topic_prefix}.dead-letters"
    large = b"\x00\xff" * 700_000 + bytes(range(256)) * 4
    figures.add(
        "dead_letters",
        ("id-1", 3, 17, 1, "not an event", None, None, 1, b"trace", b"\xff not json", 0),
        ("id-2", 3, 18, 2, "the record has no value", None, None, 1, None, None, 0),
        ("id-3", 4, 1, 3, "too large", None, None, 1, b"k", large, 0),
        ("id-4", 4, 2, 4, "published before", None, None, 1, b"k", b"v", 1),
        ("id-5", 4, 3, 5, "larger than a topic takes", None, None, 1, b"k", random.Random(1).randbytes(1_200_000), 0),
    )
    async with Publisher(settings) as publisher:
        # Another worker's.
        assert await publish_dead_letters(store, publisher, topic, [0, 1]) == 0
        assert await publish_dead_letters(store, publisher, topic, [3]) == 2
        assert await publish_dead_letters(store, publisher, topic, [3, 4]) == 2
        assert await publish_dead_letters(store, publisher, topic, [3, 4]) == 0
    first, second, third, fourth = await _records(settings, topic, 4)
    assert (first.key, first.value) == (b"trace", b"\xff not json")
    assert first.headers == (
        ("id", b"id-1"),
        ("topic", events.encode()),
        ("partition", b"3"),
        ("offset", b"17"),
        ("cause", b"not an event"),
    )
    # The client refuses a record with neither key nor value; the cause says what it was.
    assert (second.key, second.value) == (None, b"")
    # It compresses to less than the topic's limit.
    assert third.value == large
    assert len(fourth.value or b"") == 100_000
    assert dict(fourth.headers)["original_bytes"] == b"1200000"
    figures.close()
    store.close()
