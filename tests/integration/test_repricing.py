"""Pricing history again, on SQLite and on PostgreSQL: as a fold under the new prices makes it, or kept and counted."""

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

from cost_sql import COST, COST_SUM
from list_logs import ListLogs, trimmed
from partition_setting import ATTRIBUTED, SESSION_COSTS, pass_hours_on
from runtap_consumers.correct import reprice as repricing
from runtap_consumers.correct import reprice_statements as statements
from runtap_consumers.correct.rebuild import Rebuilt, rebuild
from runtap_consumers.correct.reprice import Repricing, Request
from runtap_consumers.errors import FencedError
from runtap_consumers.instants import dollars
from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.overrides import parse_overrides
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import COST_MEASURES
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import RunEnded, Usage
from samples import START_NS, Log, model_call

MEASURES = ", ".join(
    f"{COST_SUM if measure.whole else f'sum({measure.name})'} AS {measure.name}" for measure in COST_MEASURES
)
# Where each cost stands, and what tells its rows apart but for price set and class.
TABLES = {
    "cost_minute": "bucket_ns, provider, model, service, environment, partition",
    "cost_hour": "bucket_ns, provider, model, service, environment, partition",
    "cost_day": "bucket_ns, provider, model, service, environment, partition",
    "cost_total": "provider, model, service, environment, partition",
    ATTRIBUTED: "bucket_ns, attribute, value, provider, model, service, environment, partition",
    SESSION_COSTS: "session_id, provider, model, service, environment, partition",
}
# They change on a day and at a size within what is stored …
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
# … and here they do not, and audio has a price wherever it was used.
EXACT = prices(
    OTHER_PRICES.replace("2026-03-0", "2026-02-0")
    .replace("150_000", "128_000")
    .replace('request = "0.25"', 'request = "0.25"\ninput_audio = "0.3"\noutput_audio = "2"')
)


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
    settings = ConsumerSettings.load(cost_by="metadata.team", runs_retention_days=30)
    return Tools.of(store, writer, table, settings)


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
            summed = connection.execute(text(f"SELECT {keys}, {MEASURES} FROM {table} GROUP BY {keys}"))
            rows = [tuple(int(each) if isinstance(each, Decimal) else each for each in row) for row in summed]
            found[table] = sorted(by_day(rows, len(COST_MEASURES), store) if table == ATTRIBUTED else rows)
        runs = connection.execute(text("SELECT run_id, cost_picodollars FROM runs"))
        found["runs"] = sorted((run, -1 if cost is None else int(cost)) for run, cost in runs)
    return found


def by_day(rows: list[tuple[Any, ...]], measures: int, store: Store) -> list[tuple[Any, ...]]:
    """Sums by the day that a row's bucket lies in, and by the rest of its key."""
    days: dict[tuple[Any, ...], list[int]] = {}
    for bucket_ns, *row in rows:
        key = (Calendar(store.zone).day_of(bucket_ns), *row[:-measures])
        days[key] = [a + b for a, b in zip(days.get(key, [0] * measures), row[-measures:], strict=True)]
    return [(*key, *sums) for key, sums in days.items()]


def everything(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows that carry a price, whole; money as one sum."""
    found = {}
    with store.read() as connection:
        for table in (*TABLES, "runs"):
            rows = [row._asdict() for row in connection.execute(text(f"SELECT * FROM {table}"))]
            for row in rows:
                if "cost_microdollars" in row:
                    row["cost_picodollars"] += row.pop("cost_microdollars") * 10**6
            found[table] = sorted((tuple(row.values()) for row in rows), key=repr)
    return found


def sets(store: Store, table: str) -> set[str]:
    with store.read() as connection:
        return {
            name
            for (name,) in connection.execute(
                text(f"SELECT DISTINCT price_set FROM {table} WHERE price_set IS NOT NULL")
            )
        }


def reprice(store: Store, table: PriceTable, request: Request | None = None, *, is_dry_run: bool = False) -> Repricing:
    request = request or Request(START_NS)
    return repricing.reprice(store, table, request, "tester", lambda: START_NS, is_dry_run=is_dry_run)


def kept(outcome: Repricing) -> dict[str, int]:
    """What was counted as kept."""
    return {name: count for name, count in outcome.counts.items() if count and name.startswith("kept")}


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    with store.read() as connection:
        found = connection.execute(text(query)).all()
    return [tuple(int(each) if isinstance(each, Decimal) else each for each in row) for row in found]


@pytest.mark.parametrize("seed", [1, 2])
def test_repriced_history_equals_history_folded_under_the_new_prices(store: Store, tmp_path: Path, seed: int) -> None:
    logs = random_logs(seed)
    fold(store, logs, OLD)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", store.zone.key)
    fold(expected, logs, EXACT)
    before, whole = figures(store), everything(store)
    wanted = figures(expected)
    expected.close()
    assert all(before[table] != wanted[table] for table in wanted)
    foreseen = reprice(store, EXACT, is_dry_run=True)
    assert everything(store) == whole
    assert rows(store, "SELECT * FROM repricings") == []
    outcome = reprice(store, EXACT)
    assert figures(store) == wanted
    assert kept(outcome) == {}
    assert outcome == foreseen
    for table in (*TABLES, "runs"):
        left = f"SELECT count(*) FROM {table} WHERE price_set = '{OLD.price_set}' AND price_class <> 'cached'"
        assert rows(store, left) == [(0,)], table
    assert reprice(store, EXACT).counts["rows_changed"] == 0


def runs_by_hour(store: Store) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Calls and cost of the single runs, by hour, model, service and price class."""
    found: dict[tuple[Any, ...], tuple[int, int]] = {}
    calendar = Calendar(store.zone)
    facts = "ended_at_ns, coalesce(model, ''), service, price_class, coalesce(cost_picodollars, 0)"
    for at_ns, *key, cost in rows(store, f"SELECT {facts} FROM runs WHERE run_type = 'llm'"):
        hour = (calendar.hour_of(at_ns), *key)
        calls, so_far = found.get(hour, (0, 0))
        found[hour] = calls + 1, so_far + cost
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_hours_are_the_sum_of_their_runs_and_what_cannot_be_told_is_kept_and_counted(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed == 2:
        # Several transactions: a day whose hours are in two of them would be counted in both.
        monkeypatch.setattr(repricing, "ROWS_A_TRANSACTION", 60)
    fold(store, random_logs(seed), OLD)
    outcome = reprice(store, NEW)
    by_runs = runs_by_hour(store)
    grouped = f"model, service, price_class, sum(calls), {COST_SUM}"
    told = rows(
        store,
        f"SELECT bucket_ns, {grouped} FROM cost_hour WHERE price_set = '{NEW.price_set}' "
        "GROUP BY bucket_ns, model, service, price_class",
    )
    assert len(told) > 50
    for *group, calls, cost in told:
        assert by_runs[tuple(group)] == (calls, cost), group
    # Every coarser row is what its finer ones come to, under each price set.
    key = "provider, model, service, environment, price_set, price_class, partition"
    days, hours, totals = (
        rows(store, f"SELECT {key}, {MEASURES} FROM {table} GROUP BY {key} ORDER BY {key}")
        for table in ("cost_day", "cost_hour", "cost_total")
    )
    assert days == hours == totals
    of_days = f"SELECT bucket_ns, sum(calls), {COST_SUM} FROM cost_day GROUP BY 1 ORDER BY 1"
    sums: dict[int, list[int]] = {}
    for hour, calls, cost in rows(store, f"SELECT bucket_ns, calls, {COST} FROM cost_hour"):
        day = sums.setdefault(Calendar(store.zone).day_of(hour), [0, 0])
        day[0], day[1] = day[0] + calls, day[1] + cost
    assert rows(store, of_days) == [(day, *each) for day, each in sorted(sums.items())]
    left = f"price_set = '{OLD.price_set}' AND price_class <> 'cached'"
    for name, table in (
        ("kept_calls", "cost_day"),
        ("kept_hour_calls", "cost_hour"),
        ("kept_session_calls", SESSION_COSTS),
        ("kept_attribute_calls", ATTRIBUTED),
    ):
        ((calls,),) = rows(store, f"SELECT sum(calls) FROM {table} WHERE {left}")
        assert outcome.counts[name] == calls > 0, name
    assert rows(store, f"SELECT count(*) FROM runs WHERE {left}") == [(0,)]
    names = ("rows_changed", "kept_calls", "kept_session_calls", "kept_attribute_calls")
    (record,) = rows(store, f"SELECT {', '.join(names)}, old_cost_usd, new_cost_usd FROM repricings")
    amounts = [dollars(outcome.total[name]) for name in ("old_picodollars", "new_picodollars")]
    assert record == (*(outcome.counts[name] for name in names), *amounts)


def test_the_same_prices_under_another_name_change_no_figure(berlin: Store) -> None:
    from genai_prices.data import providers

    fold(berlin, random_logs(3), OLD)
    before, whole = figures(berlin), everything(berlin)
    assert reprice(berlin, OLD).counts["rows_changed"] == 0
    assert everything(berlin) == whole
    renamed = PriceTable(providers, "renamed")
    assert renamed.price_set != OLD.price_set
    assert reprice(berlin, renamed).counts["rows_changed"] > 1_000
    assert figures(berlin) == before
    assert sets(berlin, "cost_hour") == {OLD.price_set, renamed.price_set, "provider"}
    fenced = "SELECT sum(epoch) FROM positions"
    epochs = rows(berlin, fenced)
    reprice(berlin, renamed)
    assert rows(berlin, fenced) == epochs


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
            for place, table in enumerate((OLD, EXACT, OLD, EXACT)):
                partition._tools.prices = table
                partition.commit(partition.fold(log.since(partition.next_offset, 80 if place < 3 else None)))
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, EXACT)
    wanted = figures(expected)
    expected.close()
    reprice(berlin, EXACT)
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
        for table in ("cost_hour", "cost_day", "cost_total", ATTRIBUTED)
    ]
    runs = sum(max(cost, 0) for _, cost in after["runs"]) - sum(max(cost, 0) for _, cost in before["runs"])
    assert change[0] > 0
    assert change[:3] == [change[0]] * 3
    # Of the calls, some have a user, some a team, some both.
    assert change[3] > 0
    assert runs == change[0]
    again = reprice(berlin, NEW, Request(day, day + DAY_NS, provider="VLLM", model="house-7b"))
    assert again.counts["rows_changed"] == 0


def delete(store: Store, what: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {what}"))


def test_a_new_threshold_within_a_stored_bucket_is_kept_and_counted(berlin: Store) -> None:
    log = Log()
    for number, size in enumerate((140_000, 160_000, 170_000)):
        usage = Usage(input_tokens=size, output_tokens=0)
        facts = {"run_id": f"r-{number}", "usage": usage, "user_id": "ann", "session_id": "s"}
        log.append(model_call(START_NS + number, **facts), "e1", number + 1)
    fold(berlin, [log], OLD)
    entry = '[[price]]\nmodel="{}"\ninput="1"\noutput="1"\n[[price.above]]\ninput_tokens=150_000\ninput="2"\n'
    before = figures(berlin)
    outcome = reprice(berlin, prices(entry.format("gpt-4o-mini*")))
    names = ("kept_calls", "kept_hour_calls", "kept_session_calls", "kept_attribute_calls")
    assert kept(outcome) == dict.fromkeys(names, 3)
    after = figures(berlin)
    # Single runs are told one by one.
    assert [cost for _, cost in after.pop("runs")] == [140_000 * 10**6, 320_000 * 10**6, 340_000 * 10**6]
    before.pop("runs")
    assert after == before
    # For models whose price does not change there, it is no matter.
    assert kept(reprice(berlin, prices(entry.format("another")))) == {}


def hourly_calls(hours: range) -> Log:
    log = Log()
    for number, hour in enumerate(hours):
        usage = Usage(input_tokens=1, output_tokens=0)
        at_ns = START_NS + hour * HOUR_NS + 10 * MINUTE_NS
        log.append(model_call(at_ns, run_id=f"r-{number}", usage=usage, user_id="u"), "e1", number + 1)
    return log


DEAR = prices('[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n')


@pytest.mark.parametrize("have_passed", [False, True])
def test_days_that_straddle_a_price_change_are_the_sum_of_their_hours(have_passed: bool, store: Store) -> None:
    fold(store, [hourly_calls(range(-8, 24))], OLD)
    if have_passed:
        pass_hours_on(store, START_NS + 9 * DAY_NS)
    # START_NS is 10:00 UTC: midnight UTC lies 14 hours later, at 01:00 in Berlin and at 05:30 in Kolkata.
    dearer = prices(
        '[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n'
        '[[price]]\nmodel="gpt-4o-mini*"\nfrom=2026-03-03\ninput="5"\noutput="1"\n'
    )
    outcome = reprice(store, dearer, Request(START_NS - DAY_NS))
    is_kolkata = store.zone.key == "Asia/Kolkata"
    # In Kolkata the change divides an hour, in which a call was made; it costs what it cost.
    cost = (22 + 9 * 5) * 10**6 + 150_000 if is_kolkata else (22 + 10 * 5) * 10**6
    found = figures(store)
    for table in ("cost_minute", "cost_hour", "cost_day", "cost_total"):
        assert sum(row[-1] for row in found[table]) == cost, table
    in_hours = {"kept_calls": 1, "kept_hour_calls": 1} if is_kolkata else {}
    second_day = START_NS + (8 * HOUR_NS + 30 * MINUTE_NS if is_kolkata else 13 * HOUR_NS)
    calls_of_the_day = sum(row[-len(COST_MEASURES)] for row in found["cost_day"] if row[0] == second_day)
    by_day = {row[0]: row[-1] for row in found["cost_day"]}
    # By attribute, there are only days after a while; the one that the change divides keeps its prices.
    attributed = cost - by_day[second_day] + 150_000 * calls_of_the_day if have_passed else cost
    kept_calls = calls_of_the_day if have_passed else int(is_kolkata)
    assert sum(row[-1] for row in found[ATTRIBUTED]) == attributed
    assert kept(outcome) == {**in_hours, **({"kept_attribute_calls": kept_calls} if kept_calls else {})}
    assert by_day[second_day] == (150_000 + (5 + 9 * 5) * 10**6 if is_kolkata else (1 + 10 * 5) * 10**6)


def test_days_whose_hours_are_gone_keep_their_prices_and_are_counted(berlin: Store) -> None:
    fold(berlin, [hourly_calls(range(24))], OLD)
    delete(berlin, f"cost_hour WHERE bucket_ns < {START_NS + 4 * HOUR_NS}")
    outcome = reprice(berlin, DEAR)
    assert kept(outcome) == {"kept_calls": 4}
    for table in ("cost_day", "cost_total"):
        assert rows(berlin, f"SELECT price_set, sum(calls), {COST_SUM} FROM {table} GROUP BY 1 ORDER BY 2") == [
            (OLD.price_set, 4, 4 * 150_000),
            (DEAR.price_set, 20, 20 * 10**6),
        ]


def test_hours_of_utc_in_a_zone_of_half_hours_keep_their_prices_and_are_counted(store: Store) -> None:
    fold(store, [hourly_calls(range(3))], OLD)
    with store.engine.begin() as connection:
        # As workers wrote them before hours were counted from the zone's midnight.
        connection.execute(text(f"UPDATE cost_hour SET bucket_ns = bucket_ns - bucket_ns % {HOUR_NS}"))
    outcome = reprice(store, DEAR)
    is_kolkata = store.zone.key == "Asia/Kolkata"
    assert kept(outcome) == ({"kept_calls": 3, "kept_hour_calls": 3} if is_kolkata else {})
    assert sets(store, "cost_day") == {OLD.price_set if is_kolkata else DEAR.price_set}


def test_a_session_that_reaches_beyond_the_range_or_over_a_price_change_is_kept_and_counted(berlin: Store) -> None:
    day = START_NS - 11 * HOUR_NS + DAY_NS
    log = Log()
    calls = [
        ("long", START_NS),
        ("long", day + 4 * HOUR_NS),
        ("short", day + 5 * HOUR_NS),
        ("later", day + 25 * HOUR_NS),
    ]
    for number, (session, at_ns) in enumerate(calls):
        usage = Usage(input_tokens=1, output_tokens=0)
        log.append(model_call(at_ns, run_id=f"r-{number}", usage=usage, session_id=session), "e1", number + 1)
    fold(berlin, [log], OLD)
    outcome = reprice(berlin, DEAR, Request(day, day + DAY_NS))
    assert kept(outcome) == {"kept_session_calls": 2}
    costs = f"SELECT session_id, price_set, calls, {COST} FROM " + SESSION_COSTS + " ORDER BY 1"
    assert rows(berlin, costs) == [
        ("later", OLD.price_set, 1, 150_000),
        ("long", OLD.price_set, 2, 300_000),
        ("short", DEAR.price_set, 1, 10**6),
    ]
    assert kept(reprice(berlin, DEAR)) == {}
    changed = prices(
        '[[price]]\nmodel="gpt-4o-mini*"\ninput="1"\noutput="1"\n'
        '[[price]]\nmodel="gpt-4o-mini*"\nfrom=2026-03-03\ninput="5"\noutput="1"\n'
    )
    assert reprice(berlin, changed).counts["kept_session_calls"] == 2
    assert [row[3] for row in rows(berlin, costs)] == [5 * 10**6, 2 * 10**6, 5 * 10**6]


def test_what_was_capped_is_kept_and_counted(berlin: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtap_consumers.projections.dimensions.DEFAULT_CAP", 1)
    log = Log()
    for number, model in enumerate(("gpt-4o-mini", "gpt-4o")):
        log.append(
            model_call(START_NS + number, run_id=f"r-{number}", model=model, request_model=model), "e1", number + 1
        )
    fold(berlin, [log], OLD)
    assert reprice(berlin, NEW).counts["kept_hour_calls"] == 1
    assert rows(berlin, "SELECT model, price_set FROM cost_total ORDER BY 1") == [
        ("__other__", OLD.price_set),
        ("gpt-4o", NEW.price_set),
    ]


def test_a_call_that_nobody_believes_has_no_price_and_is_not_guessed_at(berlin: Store) -> None:
    dear = prices('[[price]]\nmodel="gpt-4.5*"\ninput="75"\noutput="150"\n')
    log = Log()
    most = Usage(input_tokens=10**9, output_tokens=10**9)
    facts = {"model": "gpt-4.5-preview", "usage": most}
    log.append(model_call(START_NS, run_id="alone", **facts), "e1", 1)
    for number in range(2, 22):
        usage = most if number % 2 else Usage(input_tokens=600_000, output_tokens=1)
        log.append(model_call(START_NS + HOUR_NS, run_id=f"r-{number}", **{**facts, "usage": usage}), "e1", number)
    fold(berlin, [log], OLD)
    before = figures(berlin)
    # Which of twenty calls nobody would believe, their sum does not say.
    assert reprice(berlin, dear).counts["kept_hour_calls"] == 20
    hours = f"SELECT priced_calls, unpriced_calls, {COST}, price_set FROM cost_hour ORDER BY bucket_ns"
    assert rows(berlin, hours)[0] == (0, 1, 0, dear.price_set)
    cheap = (600_000 * 75 + 150) * 10**6
    assert sorted({cost for _, cost in figures(berlin)["runs"]}) == [-1, cheap]
    reprice(berlin, OLD)
    assert figures(berlin) == before


def test_a_crash_in_the_middle_is_finished_by_the_next_attempt(
    berlin: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = random_logs(7)
    fold(berlin, logs, OLD)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, EXACT)
    wanted = figures(expected)
    expected.close()
    monkeypatch.setattr(repricing, "ROWS_A_TRANSACTION", 60)

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
                original = getattr(statements, name)
                patch.setattr(
                    statements,
                    name,
                    lambda *given, original=original: counted(*given, original=original),
                )
            try:
                reprice(berlin, EXACT)
            except Killed:
                continue
            break
    assert attempts > 3
    assert figures(berlin) == wanted
    records = rows(berlin, "SELECT finished_at_ns, rows_changed, price_set, requested_by FROM repricings ORDER BY 2")
    assert len(records) == attempts
    assert [finished for finished, *_ in records if finished is not None] == [START_NS]
    # Those that were killed say what they had done until then.
    assert records[-1][1] > 0
    assert {tuple(record[2:]) for record in records} == {(EXACT.price_set, "tester")}


def test_a_worker_with_a_batch_in_hand_is_fenced_and_nothing_is_lost(berlin: Store, tmp_path: Path) -> None:
    logs = random_logs(8)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, EXACT)
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
                reprice(berlin, EXACT)
                try:
                    partition.commit(commit)
                except FencedError:
                    fences += 1
                    partition = Partition(number, tuple(PROJECTIONS), tools_of(berlin, writer, OLD))
                    partition.load(0)
                    partition.commit(partition.fold(log.since(partition.next_offset, 100)))
    assert fences >= 4
    reprice(berlin, EXACT)
    assert figures(berlin) == wanted


def test_repricing_waits_for_a_worker_that_is_committing_and_prices_what_it_wrote(
    berlin: Store, tmp_path: Path
) -> None:
    logs = random_logs(9, count=40)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", berlin.zone.key)
    fold(expected, logs, EXACT)
    wanted = figures(expected)
    expected.close()
    began, released_at = threading.Event(), 0.0

    def commit_slowly() -> None:
        nonlocal released_at
        with Writer.of(berlin) as other:
            partition = Partition(0, tuple(PROJECTIONS), tools_of(berlin, other, OLD))
            partition.load(0)
            partition.commit(partition.fold(logs[0].since(0, 20)))
            commit = partition.fold(logs[0].since(20))
            with other.transaction():
                other.write(commit)
                began.set()
                time.sleep(1.2)
                released_at = time.monotonic()

    worker = threading.Thread(target=commit_slowly)
    worker.start()
    assert began.wait(10)
    reprice(berlin, EXACT)
    assert time.monotonic() > released_at > 0
    worker.join()
    # Read before that commit, it would have kept its old prices.
    assert figures(berlin) == wanted


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
    logs = random_logs(2)
    expected = open_store(f"sqlite:///{tmp_path}/expected.db", "runtap.events", store.zone.key)
    fold(expected, logs, EXACT)
    wanted = figures(expected)
    expected.close()
    fold(store, logs, OLD)
    before = figures(store)
    assert all(before[table] != wanted[table] for table in wanted)

    # A rebuild replaces the costs of the days that the log still holds, and only costs; a repricing the rest.
    done = await rebuild_at(store, logs, EXACT, cut=cut)
    assert (done.from_ns > START_NS) == (cut > 0)
    rebuilt = figures(store)
    for table in ("cost_minute", "cost_hour", "cost_day"):
        old_days = [row for row in before[table] if row[0] < done.from_ns]
        assert (len(old_days) > 20) == (cut > 0)
        assert rebuilt[table] == sorted(old_days + [row for row in wanted[table] if row[0] >= done.from_ns])
    assert [rebuilt[table] for table in (SESSION_COSTS, "runs")] == [before[table] for table in (SESSION_COSTS, "runs")]
    outcome = reprice(store, EXACT)
    assert kept(outcome) == {}
    assert all(day < done.from_ns for day, _, _ in outcome.days)
    assert bool(outcome.days) == (cut > 0)
    assert figures(store) == wanted

    # And of what is repriced, a rebuild at the same prices changes nothing.
    await rebuild_at(store, logs, EXACT, cut=cut)
    assert figures(store) == wanted
    assert reprice(store, EXACT).counts["rows_changed"] == 0


async def test_a_rebuild_at_other_prices_takes_a_repricing_back_where_the_log_reaches(berlin: Store) -> None:
    logs = random_logs(8)
    fold(berlin, logs, OLD)
    before = figures(berlin)
    reprice(berlin, EXACT)
    repriced = figures(berlin)
    await rebuild_at(berlin, logs, OLD)
    costs = [table for table in TABLES if table != SESSION_COSTS]
    mixed = {**repriced, **{table: before[table] for table in costs}}
    assert figures(berlin) == mixed

    for projection in ("sessions", "runs"):
        await rebuild_at(berlin, logs, OLD, projection)
    assert figures(berlin) == before
    assert kept(reprice(berlin, EXACT)) == {}
    assert figures(berlin) == repriced
