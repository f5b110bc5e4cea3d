"""Pricing history again, on SQLite and on PostgreSQL: equal to what a fold under the new prices would have made."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from list_logs import ListLogs, trimmed
from runtap_consumers.correct import (
    Outcome,
    Request,
    apply_repricing,
    preview_repricing,
    rows,
    stored_costs,
    transactions,
)
from runtap_consumers.correct.rebuild import Rebuilt, rebuild
from runtap_consumers.errors import FencedError
from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.overrides import parse_overrides
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.dimensions import Dimensions
from runtap_consumers.projections.rollups import COST_MEASURES, DAY_NS, HOUR_NS, MINUTE_NS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dimension_values import admit_values
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import RunEnded, Usage
from samples import START_NS, Log, model_call

MEASURES = ", ".join(f"sum({measure.name}) AS {measure.name}" for measure in COST_MEASURES)
# Where each cost stands, and what tells its rows apart but for price set and class.
TABLES = {
    "cost_minute": "bucket_ns, provider, model, service, environment, partition",
    "cost_hour": "bucket_ns, provider, model, service, environment, partition",
    "cost_day": "bucket_ns, provider, model, service, environment, partition",
    "cost_total": "provider, model, service, environment, partition",
    "cost_by_attribute_hour": "attribute, value, bucket_ns, provider, model, service, partition",
    "cost_by_attribute_day": "attribute, value, bucket_ns, provider, model, service, partition",
    "session_costs": "session_id, provider, model, partition",
}
OTHER_PRICES = """
[[price]]
provider = "openai"
model = "gpt-4o-mini*"
from = 2026-03-03
input = "0.11"
cache_read = "0.01"
output = "0.7"
[[price.above]]
input_tokens = 150_000
input = "0.2"

[[price]]
model = "house-*"
input = "0.000003"
output = "1.5"
request = "0.25"

[[discount]]
provider = "anthropic"
model = "*"
from = 2026-03-02
percent = "7.5"
"""


def prices(text: str = "") -> PriceTable:
    from genai_prices.data import providers

    return PriceTable(providers, "genai", parse_overrides(text, "prices.toml"))


OLD = prices()
NEW = prices(OTHER_PRICES)


@pytest.fixture(params=["Europe/Berlin", "Asia/Kolkata"])
def store(request: pytest.FixtureRequest, store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", request.param)
    yield opened
    opened.close()


@pytest.fixture
def berlin(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", "Europe/Berlin")
    yield opened
    opened.close()


def tools_of(store: Store, writer: Writer, table: PriceTable) -> Tools:
    dimensions = Dimensions(lambda day, values: admit_values(writer, day, values), ("team",))
    settings = ConsumerSettings.load(cost_by="metadata.team", runs_retention_days=30)
    return Tools(store, writer, table, dimensions, settings)


def fold(store: Store, logs: list[Log], table: PriceTable, at_most: int = 400) -> None:
    with Writer.of(store) as writer:
        for number, log in enumerate(logs):
            partition = Partition(number, tuple(PROJECTIONS), tools_of(store, writer, table))
            partition.load(0)
            while records := log.since(partition.next_offset, at_most):
                partition.commit(partition.fold(records))


def random_call(chance: random.Random, at_ns: int, number: int) -> RunEnded:
    provider, model, tier = chance.choice(
        [
            ("openai", "gpt-4o-mini-2024-07-18", None),
            ("openai", "gpt-4o-mini", chance.choice([None, "flex", "batch"])),
            ("openai", "gpt-4o-audio-preview", None),
            ("anthropic", "claude-sonnet-4-5", chance.choice([None, "batch"])),
            ("google_genai", "gemini-2.5-pro", None),
            ("deepseek", "deepseek-chat", None),
            ("vllm", "house-7b", None),
            ("nobody", "unheard-of", None),
        ]
    )
    size = chance.choice([100, 20_000, 140_000, 160_000, 199_999, 230_000])
    read = chance.choice([0, size // 2])
    usage = Usage(
        input_tokens=size,
        output_tokens=chance.randrange(2_000),
        cache_read_tokens=read,
        cache_write_5m_tokens=chance.choice([None, 0, 7]),
        input_audio_tokens=chance.choice([None] * 5 + [3]),
        input_image_tokens=chance.choice([None] * 5 + [4]),
        output_audio_tokens=chance.choice([None] * 9 + [1]),
        web_searches=chance.choice([None] * 9 + [2]),
    )
    odd: dict[str, Any] = chance.choice(
        [
            *([{}] * 12),
            {"usage": None, "usage_source": "none"},
            {"usage": None, "usage_source": "none", "status": "error"},
            {"usage": replace_usage(usage, output_tokens=None)},
            {"usage": replace_usage(usage, cache_read_tokens=size + 1)},
            {"usage_source": "cache"},
            {"reported_cost_usd": "0.01"},
        ]
    )
    facts = {
        "provider": provider,
        "model": model,
        "request_model": model,
        "service_tier": tier,
        "usage": usage,
        "run_id": f"run-{number}",
        "session_id": f"s-{number // 40}",
        "user_id": chance.choice([None, "ann", "ben"]),
        "service": chance.choice(["checkout", "search"]),
        "metadata": chance.choice([{}, {"team": "red"}, {"team": 7}]),
    }
    return model_call(at_ns, **{**facts, **odd})


def replace_usage(usage: Usage, **changes: Any) -> Usage:
    return Usage(**{**{name: getattr(usage, name) for name in usage.__struct_fields__}, **changes})


def random_logs(seed: int, count: int = 600, days: float = 2.5, log_time_ns: int | None = None) -> list[Log]:
    chance = random.Random(seed)
    logs = [Log(), Log()]
    for number in range(count):
        at_ns = START_NS + int(number / count * days * DAY_NS)
        log = logs[number // 40 % 2]
        log.append(random_call(chance, at_ns, number), "e1", len(log.records) + 1, log_time_ns)
    return logs


def figures(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All costs, whatever prices they name."""
    found = {}
    with store.read() as connection:
        for table, keys in TABLES.items():
            rows = connection.execute(text(f"SELECT {keys}, {MEASURES} FROM {table} GROUP BY {keys}"))
            found[table] = sorted(
                tuple(int(each) if isinstance(each, Decimal) else each for each in row) for row in rows
            )
        rows = connection.execute(text("SELECT run_id, cost_picodollars FROM runs"))
        found["runs"] = sorted((run, -1 if cost is None else int(cost)) for run, cost in rows)
    return found


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows that carry a price, whole."""
    with store.read() as connection:
        return {
            table: sorted((tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))), key=repr)
            for table in (*TABLES, "runs")
        }


def sets(store: Store, table: str) -> set[str]:
    with store.read() as connection:
        return {
            name
            for (name,) in connection.execute(
                text(f"SELECT DISTINCT price_set FROM {table} WHERE price_set IS NOT NULL")
            )
        }


def reprice(store: Store, table: PriceTable, request: Request | None = None) -> Outcome:
    request = request or Request(START_NS)
    foreseen = preview_repricing(store, table, request)
    return apply_repricing(store, table, request, foreseen, "tester", lambda: START_NS)


@pytest.mark.parametrize("seed", [1, 2])
def test_repriced_history_equals_history_folded_under_the_new_prices(store: Store, tmp_path: Path, seed: int) -> None:
    logs = random_logs(seed)
    fold(store, logs, OLD)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", store.zone.key)
    fold(expected, logs, NEW)
    before = figures(store)
    wanted = figures(expected)
    expected.close()
    assert before != wanted
    foreseen = preview_repricing(store, NEW, Request(START_NS))
    assert foreseen.inexact == []
    assert figures(store) == before
    outcome = reprice(store, NEW)
    assert outcome.inexact == []
    assert figures(store) == wanted
    assert outcome.days == foreseen.days
    for table in (*TABLES, "runs"):
        assert sets(store, table) <= {NEW.price_set, OLD.price_set, "provider"}, table
    with store.read() as connection:
        for table in (*TABLES, "runs"):
            left = f"SELECT count(*) FROM {table} WHERE price_set = '{OLD.price_set}' AND price_class <> 'cached'"
            assert connection.execute(text(left)).scalar_one() == 0


def test_the_same_prices_under_another_name_change_no_figure(berlin: Store) -> None:
    from genai_prices.data import providers

    fold(berlin, random_logs(3), OLD)
    before, whole = figures(berlin), everything(berlin)
    assert reprice(berlin, OLD).rows == 0
    assert everything(berlin) == whole
    renamed = PriceTable(providers, "renamed")
    assert renamed.price_set != OLD.price_set
    assert reprice(berlin, renamed).rows > 1_000
    assert figures(berlin) == before
    assert sets(berlin, "cost_hour") == {OLD.price_set, renamed.price_set, "provider"}


def test_there_and_back_changes_nothing(store: Store) -> None:
    fold(store, random_logs(4), OLD)
    whole = everything(store)
    reprice(store, NEW)
    assert everything(store) != whole
    reprice(store, OLD)
    assert everything(store) == whole


def test_repriced_rows_merge_with_what_workers_wrote_under_the_new_prices(berlin: Store, tmp_path: Path) -> None:
    logs = random_logs(5)
    with Writer.of(berlin) as writer:
        for number, log in enumerate(logs):
            partition = Partition(number, tuple(PROJECTIONS), tools_of(berlin, writer, OLD))
            partition.load(0)
            for place, table in enumerate((OLD, NEW, OLD, NEW)):
                partition._tools.prices = table
                partition.commit(partition.fold(log.since(partition.next_offset, 80 if place < 3 else None)))
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, NEW)
    wanted = figures(expected)
    expected.close()
    reprice(berlin, NEW)
    assert figures(berlin) == wanted


def test_only_the_days_and_models_asked_for_change(berlin: Store) -> None:
    fold(berlin, random_logs(6), OLD)
    before = figures(berlin)
    # Midnight in Berlin; the instant asked for lies within that day.
    day = START_NS - 11 * HOUR_NS + DAY_NS
    reprice(berlin, NEW, Request(day + 5 * HOUR_NS, day + DAY_NS, model="house*"))
    after = figures(berlin)
    changed = {(row[0], row[2]) for row, old in zip(after["cost_hour"], before["cost_hour"], strict=True) if row != old}
    assert {model for _, model in changed} == {"house-7b"}
    assert all(day <= hour < day + DAY_NS for hour, _ in changed)
    places = [measure.name for measure in COST_MEASURES]
    cost = places.index("cost_picodollars") - len(places)
    change = [
        sum(row[cost] for row in after[table]) - sum(row[cost] for row in before[table])
        for table in ("cost_hour", "cost_day", "cost_total", "session_costs")
    ]
    runs = sum(max(cost, 0) for _, cost in after["runs"]) - sum(max(cost, 0) for _, cost in before["runs"])
    assert change[0] > 0
    assert change == [change[0]] * 4
    assert runs == change[0]
    assert reprice(berlin, NEW, Request(day, day + DAY_NS, provider="VLLM", model="house-7b")).rows == 0


def one_call_a_second(usage: Usage, count: int = 90, **facts: Any) -> Log:
    log = Log()
    for number in range(count):
        log.append(
            model_call(START_NS + number * 10**9, run_id=f"r-{number}", usage=usage, session_id="s", **facts),
            "e1",
            number + 1,
        )
    return log


def forget_runs(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM runs"))


def test_a_new_threshold_within_a_stored_bucket_is_priced_from_runs_while_they_last(berlin: Store) -> None:
    log = Log()
    for number, size in enumerate((140_000, 160_000, 170_000)):
        usage = Usage(input_tokens=size, output_tokens=0)
        log.append(model_call(START_NS + number, run_id=f"r-{number}", usage=usage, user_id="ann"), "e1", number + 1)
    fold(berlin, [log], OLD)
    threshold = prices(
        '[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n[[price.above]]\ninput_tokens=150_000\ninput="2"\n'
    )
    outcome = reprice(berlin, threshold)
    assert outcome.inexact == []
    for table in ("cost_minute", "cost_day", "cost_total", "cost_by_attribute_day"):
        with berlin.read() as connection:
            rows = connection.execute(text(f"SELECT price_class, calls, cost_picodollars FROM {table}")).all()
        # The class says what is known of the calls: it stays.
        assert [tuple(row) for row in rows] == [("128000-199999", 3, (140_000 + 2 * 330_000) * 10**6)], table
    reprice(berlin, OLD)
    forget_runs(berlin)
    whole = everything(berlin)
    foreseen = preview_repricing(berlin, threshold, Request(START_NS))
    assert {each.table for each in foreseen.inexact} == {
        *("cost_minute", "cost_hour", "cost_day", "cost_by_attribute_hour", "cost_by_attribute_day")
    }
    assert "gpt-4o-mini" in str(foreseen.inexact[0])
    # For models whose price does not change there, it is no matter.
    elsewhere = prices(
        '[[price]]\nmodel="another"\ninput="1"\noutput="1"\n[[price.above]]\ninput_tokens=150_000\ninput="2"\n'
    )
    assert preview_repricing(berlin, elsewhere, Request(START_NS)).inexact == []
    assert reprice(berlin, threshold).rows == 0
    assert everything(berlin) == whole


def test_days_that_straddle_a_price_change_are_derived_from_hours(store: Store) -> None:
    log = Log()
    for hour in range(-8, 24):
        at_ns = START_NS + hour * HOUR_NS + 10 * MINUTE_NS
        log.append(
            model_call(at_ns, run_id=f"r-{hour}", usage=Usage(input_tokens=1, output_tokens=0), user_id="u"),
            "e1",
            hour + 9,
        )
    fold(store, [log], OLD)
    if store.zone.key == "Europe/Berlin":
        forget_runs(store)
    # START_NS is 10:00 UTC: midnight UTC lies 14 hours later, at 01:00 in Berlin and at 05:30 in Kolkata.
    dearer = prices(
        '[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n'
        '[[price]]\nmodel="gpt-4o-mini*"\nfrom=2026-03-03\ninput="5"\noutput="1"\n'
    )
    outcome = reprice(store, dearer, Request(START_NS - DAY_NS))
    assert {each.table for each in outcome.inexact} <= {"cost_by_attribute_day"}
    found = figures(store)
    assert sum(row[-1] for row in found["cost_day"]) == (22 + 10 * 5) * 10**6
    for table in ("cost_hour", "cost_total", "cost_by_attribute_hour"):
        assert sum(row[-1] for row in found[table]) == (22 + 10 * 5) * 10**6, table
    by_day = {row[0]: row[-1] for row in found["cost_day"]}
    hours_before = 13 if store.zone.key == "Europe/Berlin" else 9
    second_day = START_NS + (hours_before * HOUR_NS if hours_before == 13 else 8 * HOUR_NS + 30 * MINUTE_NS)
    # One hour of Berlin's day (five and a half of Kolkata's) is still at the old price.
    assert by_day[second_day] == ((1 if hours_before == 13 else 5) + 10 * 5) * 10**6


def test_a_session_that_began_before_the_range_changes_by_its_runs_within(berlin: Store) -> None:
    day = START_NS - 11 * HOUR_NS + DAY_NS
    log = Log()
    for number, at_ns in enumerate((START_NS, day + HOUR_NS, day + 2 * HOUR_NS)):
        usage = Usage(input_tokens=1, output_tokens=0)
        log.append(model_call(at_ns, run_id=f"r-{number}", usage=usage, session_id="long"), "e1", number + 1)
    fold(berlin, [log], OLD)
    dearer = prices('[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n')
    assert reprice(berlin, dearer, Request(day)).inexact == []
    with berlin.read() as connection:
        rows = connection.execute(text("SELECT price_set, calls, cost_picodollars FROM session_costs")).all()
    assert sorted(map(tuple, rows)) == sorted([(OLD.price_set, 1, 150_000), (dearer.price_set, 2, 2 * 10**6)])
    reprice(berlin, OLD, Request(day))
    forget_runs(berlin)
    (left,) = preview_repricing(berlin, dearer, Request(day)).inexact
    assert (left.table, left.key["session_id"]) == ("session_costs", "long")
    assert preview_repricing(berlin, dearer, Request(START_NS)).inexact == []


def test_what_was_capped_is_left_and_said(berlin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtap_consumers.store.dimension_values.DEFAULT_CAP", 1)
    log = Log()
    for number, model in enumerate(("gpt-4o-mini", "gpt-4o")):
        log.append(
            model_call(START_NS + number, run_id=f"r-{number}", model=model, request_model=model), "e1", number + 1
        )
    fold(berlin, [log], OLD)
    outcome = reprice(berlin, NEW)
    assert {each.key["model"] for each in outcome.inexact} == {"__other__"}
    with berlin.read() as connection:
        rows = dict(map(tuple, connection.execute(text("SELECT model, price_set FROM cost_total")).all()))
    assert rows == {"gpt-4o": NEW.price_set, "__other__": OLD.price_set}


def test_a_call_that_nobody_believes_keeps_having_no_price(berlin: Store) -> None:
    log = Log()
    most = Usage(input_tokens=10**9, output_tokens=10**9)
    for number in range(20):
        usage = most if number % 2 else Usage(input_tokens=600_000, output_tokens=1)
        log.append(model_call(START_NS, run_id=f"r-{number}", model="gpt-4.5-preview", usage=usage), "e1", number + 1)
    dear = prices('[[price]]\nmodel="gpt-4.5*"\ninput="75"\noutput="150"\n')
    fold(berlin, [log], OLD)
    fold_sums = figures(berlin)
    assert reprice(berlin, dear).inexact == []
    with berlin.read() as connection:
        row = connection.execute(text("SELECT priced_calls, unpriced_calls, cost_picodollars FROM cost_total")).one()
    assert tuple(row) == (10, 10, 10 * (600_000 * 75 + 150) * 10**6)
    reprice(berlin, OLD)
    assert figures(berlin) == fold_sums


def test_a_crash_in_the_middle_is_finished_by_the_next_attempt(
    berlin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = random_logs(7)
    fold(berlin, logs, OLD)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, NEW)
    wanted = figures(expected)
    expected.close()
    monkeypatch.setattr(transactions, "CHUNK_DAYS", 1)
    monkeypatch.setattr(transactions, "SESSIONS_A_TRANSACTION", 3)
    monkeypatch.setattr(rows, "RUNS_A_TRANSACTION", 100)
    monkeypatch.setattr(transactions, "RUNS_A_TRANSACTION", 100)

    class Killed(BaseException):
        pass

    attempts = 0
    for survived in range(50):
        attempts += 1
        left = survived + 1

        def counted(*arguments: Any, original: Callable[..., Any]) -> Any:
            nonlocal left
            left -= 1
            done = original(*arguments)
            if left < 0:
                # Everything is written, nothing is committed.
                raise Killed
            return done

        with monkeypatch.context() as patch:
            for name in ("write_deltas", "write_run_costs"):
                original = getattr(stored_costs, name)
                patch.setattr(
                    stored_costs,
                    name,
                    lambda *given, original=original: counted(*given, original=original),
                )
            try:
                reprice(berlin, NEW)
            except Killed:
                continue
            break
    assert attempts > 3
    assert figures(berlin) == wanted
    with berlin.read() as connection:
        finished = connection.execute(
            text("SELECT count(*), count(finished_at_ns), max(requested_by), max(price_set) FROM repricings")
        ).one()
    assert tuple(finished) == (attempts, 1, "tester", NEW.price_set)


def test_a_worker_with_a_batch_in_hand_is_fenced_and_nothing_is_lost(berlin: Store, tmp_path: Path) -> None:
    logs = random_logs(8)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, NEW)
    wanted = figures(expected)
    expected.close()
    fences = 0
    with Writer.of(berlin) as writer:
        for number, log in enumerate(logs):
            partition = Partition(number, tuple(PROJECTIONS), tools_of(berlin, writer, OLD))
            partition.load(0)
            while records := log.since(partition.next_offset, 100):
                commit = partition.fold(records)
                # A second attempt at the same records is not met by anything to price again.
                reprice(berlin, NEW)
                try:
                    partition.commit(commit)
                except FencedError:
                    fences += 1
                    partition = Partition(number, tuple(PROJECTIONS), tools_of(berlin, writer, OLD))
                    partition.load(0)
                    partition.commit(partition.fold(log.since(partition.next_offset, 100)))
    assert fences >= 4
    reprice(berlin, NEW)
    assert figures(berlin) == wanted


def test_repricing_waits_for_a_worker_that_is_committing(berlin: Store) -> None:
    fold(berlin, random_logs(9, count=50), OLD)
    began, released_at = threading.Event(), 0.0

    def commit_slowly() -> None:
        nonlocal released_at
        with Writer.of(berlin) as other, other.transaction():
            other.execute("UPDATE positions SET next_offset = next_offset WHERE projection = 'cost'")
            began.set()
            time.sleep(1.2)
            released_at = time.monotonic()

    worker = threading.Thread(target=commit_slowly)
    worker.start()
    assert began.wait(10)
    assert reprice(berlin, NEW).rows > 0
    assert time.monotonic() > released_at > 0
    worker.join()


async def rebuild_at(
    store: Store, logs: list[Log], table: PriceTable, projection: str = "cost", cut: int = 0
) -> Rebuilt:
    """Rebuilds a projection of what retention left of the logs, at these prices."""
    left = ListLogs({number: trimmed(log, cut) for number, log in enumerate(logs)})
    settings = ConsumerSettings.load(cost_by="metadata.team", runs_retention_days=30)
    return await rebuild(store, projection, left, table, settings)


@pytest.mark.parametrize("cut", [0, 90], ids=["whole log", "retained log"])
async def test_a_rebuild_and_a_repricing_in_either_order_equal_a_fold_under_the_new_prices(
    store: Store, tmp_path: Path, cut: int
) -> None:
    logs = random_logs(7)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", store.zone.key)
    fold(expected, logs, NEW)
    wanted = figures(expected)
    expected.close()
    fold(store, logs, OLD)
    before = figures(store)
    assert all(before[table] != wanted[table] for table in wanted)

    # A rebuild replaces the costs of the days that the log still holds, and only costs; a repricing the rest.
    done = await rebuild_at(store, logs, NEW, cut=cut)
    assert (done.from_ns > START_NS) == (cut > 0)
    rebuilt = figures(store)
    for table in ("cost_minute", "cost_hour", "cost_day"):
        old_days = [row for row in before[table] if row[0] < done.from_ns]
        assert (len(old_days) > 20) == (cut > 0)
        assert rebuilt[table] == sorted(old_days + [row for row in wanted[table] if row[0] >= done.from_ns])
    assert {table: rebuilt[table] for table in ("session_costs", "runs")} == {
        table: before[table] for table in ("session_costs", "runs")
    }
    outcome = reprice(store, NEW)
    assert outcome.inexact == []
    assert all(day < done.from_ns for day, _, _ in outcome.days)
    assert bool(outcome.days) == (cut > 0)
    assert figures(store) == wanted

    # And of what is repriced, a rebuild at the same prices changes nothing.
    await rebuild_at(store, logs, NEW, cut=cut)
    assert figures(store) == wanted
    assert reprice(store, NEW).rows == 0


async def test_a_rebuild_at_other_prices_takes_a_repricing_back_where_the_log_reaches(berlin: Store) -> None:
    logs = random_logs(8)
    fold(berlin, logs, OLD)
    before = figures(berlin)
    reprice(berlin, NEW)
    repriced = figures(berlin)
    await rebuild_at(berlin, logs, OLD)
    costs = [table for table in TABLES if table != "session_costs"]
    mixed = {**repriced, **{table: before[table] for table in costs}}
    assert figures(berlin) == mixed

    # The single runs no longer tell which of them made a row: what needs them is refused, and never guessed.
    assert preview_repricing(berlin, NEW, Request(START_NS)).inexact != []
    assert figures(berlin) == mixed
    for projection in ("sessions", "runs"):
        await rebuild_at(berlin, logs, OLD, projection)
    assert figures(berlin) == before
    assert reprice(berlin, NEW).inexact == []
    assert figures(berlin) == repriced
