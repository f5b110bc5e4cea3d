"""Rebuilding projections over logs that are lists, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from cost_sql import COST
from list_logs import ListLogs, trimmed
from partition_setting import ALL, PRICES, WorkerTools, rows
from runtap_consumers.correct import rebuild_statements
from runtap_consumers.correct.rebuild import FigureDifference, first_whole_day, rebuild
from runtap_consumers.correct.rebuild_statements import tables_of
from runtap_consumers.errors import FencedError, RebuildError
from runtap_consumers.figures.ledger import Ledger, build_ledger
from runtap_consumers.pricing import Priced
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import COST_MEASURES
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS
from runtap_consumers.worker.partition import Partition
from runtap_schemas import Usage
from samples import (
    SECOND_NS,
    START_NS,
    Log,
    LogRecord,
    chain_end,
    failure,
    framed,
    id_of,
    model_call,
    report,
    run_start,
    session_end,
    session_start,
    unreadable,
)

SETTINGS = ConsumerSettings.load(cost_by="metadata.team", commit_events="40")
# Which of several samples a row keeps, and the log time of the batch that wrote it, are not figures.
NOT_COMPARED = {"generation", "sample_run_id", "sample_error_run_id", "last_log_time_ns", "log_time_ns"}


class Killed(Exception):  # noqa: N818
    """Stands for a kill -9."""


class WrongPrices:
    """A price table that asks ten times the price for what ended before an instant."""

    def __init__(self, until_ns: int = 2**62, price_set: str = PRICES.price_set) -> None:
        self.price_set = price_set
        self._until_ns = until_ns

    def seller_at(self, provider: str | None, host: str) -> str | None:
        return PRICES.seller_at(provider, host)

    def price(self, provider: Any, model: Any, usage: Usage, at_ns: int, tier: Any, *, marks: Any) -> Priced:
        priced = PRICES.price(provider, model, usage, at_ns, tier, marks=marks)
        cost = priced.cost_picodollars
        return priced if cost is None or at_ns >= self._until_ns else Priced(priced.price_class, cost * 10)


@pytest.fixture(params=["Europe/Berlin"])
def store(store_url: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", request.param)
    yield opened
    opened.close()


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Iterator[WorkerTools]:
    """The tools of workers on another store of the same kind."""
    opened = open_store(f"sqlite:///{tmp_path}/other.db", "runtap.events", store.zone.key)
    made = WorkerTools(opened)
    yield made
    made.close()
    opened.close()


def figures(store: Store, *projections: str) -> dict[str, list[dict[str, Any]]]:
    """Every row that counts, in an order of its own; sketches as counts."""
    found: dict[str, list[dict[str, Any]]] = {}
    with open_snapshot(store) as snapshot:
        for projection in projections or ALL:
            for table in tables_of(projection):
                names = [column.name for column in table.columns if column.name not in NOT_COMPARED]
                selected = table.select().where(snapshot.is_live(table))
                selected_rows = [
                    {name: comparable(getattr(row, name)) for name in names}
                    for row in snapshot.connection.execute(selected)
                ]
                found[table.name] = sorted(named(selected_rows, store), key=repr)
        if "cost_by_attribute_hour" in found:
            hours, days = (found.pop(f"cost_by_attribute_{grain}") for grain in ("hour", "day"))
            found["cost_by_attribute"] = by_day([*hours, *days], store)
        marks = tables.lane_marks
        lanes = snapshot.connection.execute(marks.select().where(marks.c.projection.in_(projections or ALL)))
        found["lane_marks"] = sorted((row._asdict() for row in lanes), key=repr)
    return found


def named(rows: list[dict[str, Any]], store: Store) -> list[dict[str, Any]]:
    """With what the numbers of cost keys stand for, which differ from store to store."""
    with store.read() as connection:
        keys = {row.id: tuple(row)[1:] for row in connection.execute(tables.cost_keys.select())}
    return [{**row, "cost_key": keys[row["cost_key"]]} if "cost_key" in row else row for row in rows]


def by_day(rows: list[dict[str, Any]], store: Store) -> list[Any]:
    """Costs by attribute, which are in hours or in days."""
    sums: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in rows:
        day_ns = Calendar(store.zone).day_of(row["bucket_ns"])
        measures = {measure.name: row[measure.name] for measure in COST_MEASURES}
        sums[day_ns, row["partition"], row["attribute"], row["value"], row["cost_key"]].update(measures)
    return sorted(sums.items())


def comparable(value: Any) -> Any:
    if not isinstance(value, bytes | memoryview):
        return value
    counts: Counter[int] = Counter()
    for word in array("I", bytes(value)):
        counts[word >> 20] += word & 0xFFFFF
    return sorted(counts.items())


def everything(store: Store) -> dict[str, list[Any]]:
    with store.read() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(table.select())), key=repr)
            for table in tables.metadata.sorted_tables
        }


def seen(store: Store) -> Ledger:
    with open_snapshot(store) as snapshot:
        return build_ledger(snapshot, ZoneInfo("UTC"))


class RandomLogs:
    """Two partitions over some hours with everything in them that is to be expected, and some that is not."""

    def __init__(self, seed: int, count: int = 500, hours: int = 40) -> None:
        self.chance = random.Random(seed)
        self.logs = {0: Log(), 1: Log()}
        self._numbers: Counter[tuple[str, int]] = Counter()
        self._held_back: list[tuple[int, Any, str, int]] = []
        self._repeatable: dict[int, list[bytes]] = {0: [], 1: []}
        self._open: list[str] = []
        for place in range(count):
            self._step(place, START_NS + place * hours * HOUR_NS // count)

    def _step(self, place: int, now_ns: int) -> None:
        chance = self.chance
        partition = chance.randrange(2)
        emitter = f"e{partition}{chance.randrange(3)}"
        log = self.logs[partition]
        kind = chance.random()
        if kind < 0.05 and self._repeatable[partition]:
            value = chance.choice(self._repeatable[partition][-150:])
            log.append_value(value, now_ns)
            return
        if kind < 0.08 and self._held_back:
            at, event, of, number = self._held_back.pop()
            self.logs[at].append(event, of, number, log_time_ns=now_ns)
            return
        self._numbers[emitter, partition] += 1
        number = self._numbers[emitter, partition]
        if kind < 0.12:
            log.append_value(
                chance.choice(
                    [
                        b"not json",
                        unreadable(emitter, number),
                        framed([b'{"type":"run.ended"}'], emitter, number, now_ns),
                        framed([b'{"type":"run.dreamt"}'], emitter, number, now_ns),
                    ]
                ),
                now_ns,
            )
            return
        event = self._event(kind, place, now_ns)
        if kind > 0.97:
            if kind < 0.99:
                self._held_back.append((partition, event, emitter, number))
            return
        record = log.append(event, emitter, number, log_time_ns=now_ns)
        if event.at_ns <= now_ns and record.value is not None:
            self._repeatable[partition].append(record.value)

    def _event(self, kind: float, place: int, now_ns: int) -> Any:
        chance = self.chance
        late = chance.choice([0, 0, 0, chance.randrange(12 * HOUR_NS), -2 * HOUR_NS])
        at_ns = now_ns - late
        who = {"session_id": f"s-{(place + chance.randrange(60)) // 60}", "user_id": f"u-{chance.randrange(4)}"}
        if kind < 0.2:
            self._open.append(f"open-{place}")
            return run_start(now_ns, run_id=f"open-{place}", **who)
        if kind < 0.25 and self._open:
            return chain_end(at_ns, run_id=self._open.pop(chance.randrange(len(self._open))))
        if kind < 0.4:
            return chain_end(at_ns, run_id=f"c-{place}", status="error", error=failure(fingerprint=f"f{place // 100}"))
        if kind < 0.45:
            return chance.choice([session_start, session_end])(now_ns, who["session_id"])
        if kind < 0.55:
            return report(now_ns, superseded=place)
        more: dict[str, Any] = chance.choice([{}, {"usage": None}, {"model": "unheard-of", "provider": "nobody"}])
        return model_call(at_ns, run_id=f"r-{place}", name=f"n{place % 3}", metadata={"team": "red"}, **who, **more)


def apply_all(tools: WorkerTools, logs: dict[int, Log], **how: Any) -> None:
    for number, log in logs.items():
        tools.apply(log, number, **how)


@pytest.mark.parametrize("store", ["Europe/Berlin", "Asia/Kolkata"], indirect=True)
@pytest.mark.parametrize(
    ("seed", "hours"),
    [(0, 40), (3, 100), *(pytest.param(*more, marks=pytest.mark.long) for more in ((1, 40), (2, 40), (4, 100)))],
)
async def test_a_rebuild_that_has_nothing_to_correct_changes_nothing(
    store: Store, tools: WorkerTools, seed: int, hours: int
) -> None:
    # Minutes are kept for 48 hours: live workers delete some that the rebuild still fills.
    history = RandomLogs(seed, hours=hours)
    apply_all(tools, history.logs, at_most=70)
    before, ledger = figures(store), seen(store)
    cut = history.chance.choice([0, 60])
    logs = {number: trimmed(log, cut * (number + 1)) for number, log in history.logs.items()}
    for projection in ALL:
        done = await rebuild(store, projection, ListLogs(logs), PRICES, SETTINGS)
        assert (done.from_ns > 0) == (cut > 0)
        assert done.records == sum(len(log.records) for log in logs.values())
        assert figures(store, projection) == {
            name: before[name]
            if name != "lane_marks"
            else [row for row in before[name] if row["projection"] == projection]
            for name in figures(store, projection)
        }
    assert figures(store) == before
    assert seen(store) == ledger
    assert rows(store, "SELECT DISTINCT generation, epoch FROM positions") == [(0, 2)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2, 3))])
async def test_a_rebuild_beside_workers_and_killed_again_and_again_is_exact(
    store: Store, tools: WorkerTools, other: WorkerTools, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = RandomLogs(seed + 100)
    chance = history.chance
    logs = {number: trimmed(log, 50) for number, log in history.logs.items()}
    apply_all(other, history.logs, at_most=25)
    expected = figures(other.store)
    # The live workers begin with the whole log, and stand somewhere in it when the rebuild begins.
    live = {}
    for number, log in history.logs.items():
        part = Log()
        part.records = log.records[: chance.randrange(60, 150)]
        live[number] = tools.apply(part, number, at_most=25)

    def work() -> None:
        if chance.random() < 0.3:
            number = chance.randrange(2)
            records = history.logs[number].since(live[number].next_offset, chance.randrange(1, 40))
            if records:
                try:
                    live[number].commit(live[number].fold(records))
                except FencedError:
                    live[number] = Partition(number, ALL, tools.make())
                    live[number].load(0)
        if chance.random() < kill:
            raise Killed

    def deadly(step: Callable[..., Any]) -> Callable[..., Any]:
        def may_die(*arguments: Any) -> Any:
            if chance.random() < kill * 4:
                raise Killed
            return step(*arguments)

        return may_die

    read_positions = rebuild_statements.read_positions

    def outdated(*arguments: Any) -> Any:
        found = read_positions(*arguments)
        # By the time that the answer is used, workers have gone on, but where it was locked.
        if arguments[0].__name__ == "read":
            work()
        return found

    monkeypatch.setattr(rebuild_statements, "read_positions", outdated)
    for name in ("begin_rebuild", "switch_rows", "forget_rebuilds"):
        monkeypatch.setattr(rebuild_statements, name, deadly(getattr(rebuild_statements, name)))
    kills = 0
    for projection in ALL:
        kill, died = 0.05, 0
        while True:
            try:
                await rebuild(store, projection, ListLogs(logs, work), PRICES, SETTINGS)
                break
            except Killed:
                died += 1
                kill = 0.05 if died < 6 else 0.0
        kills += died
    for number, log in history.logs.items():
        while records := log.since(live[number].next_offset, 50):
            try:
                live[number].commit(live[number].fold(records))
            except FencedError:
                live[number].load(0)
    assert figures(store) == expected
    assert kills >= 6


@pytest.mark.parametrize("cut", [0, 50])
async def test_wrong_prices_are_corrected_from_the_first_whole_day_of_the_log(
    store: Store, tools: WorkerTools, other: WorkerTools, cut: int
) -> None:
    history = RandomLogs(7)
    logs = {number: trimmed(log, cut) for number, log in history.logs.items()}
    wrong: Any = WrongPrices()
    apply_all(tools, history.logs, prices=wrong)
    begin = max(log.records[0].timestamp for log in logs.values()) * 1_000_000 + MINUTE_NS
    from_ns = first_whole_day(store.zone, begin) if cut else 0
    assert from_ns == (START_NS + 13 * HOUR_NS if cut else 0)
    mixed: Any = WrongPrices(from_ns)
    apply_all(other, history.logs, prices=mixed)
    for projection in ("cost", "runs"):
        assert figures(store, projection) != figures(other.store, projection)
        done = await rebuild(store, projection, ListLogs(logs), PRICES, SETTINGS)
        assert done.from_ns == from_ns
        assert figures(store, projection) == figures(other.store, projection)
    if not cut:
        await rebuild(store, "sessions", ListLogs(logs), PRICES, SETTINGS)
        assert figures(store) == figures(other.store)


async def test_a_session_that_began_before_the_replaced_days_stays_as_it_is(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    for number, (hour, session) in enumerate([(1, "long"), (2, "short"), (30, "long"), (31, "young")], start=2):
        log.append(model_call(START_NS + hour * HOUR_NS, session_id=session), "e1", number)
    wrong: Any = WrongPrices()
    tools.apply(log, prices=wrong)
    await rebuild(store, "sessions", ListLogs({0: trimmed(log, 1)}), PRICES, SETTINGS)
    found = rows(store, f"SELECT session_id, calls, {COST} FROM session_costs ORDER BY session_id")
    assert found == [("long", 2, 2 * 1_950_000_000), ("short", 1, 1_950_000_000), ("young", 1, 195_000_000)]
    assert rows(store, "SELECT session_id, llm_calls FROM sessions ORDER BY 1") == [
        ("long", 2),
        ("short", 1),
        ("young", 1),
    ]


async def test_days_can_be_chosen(store: Store, tools: WorkerTools) -> None:
    log = Log()
    for day in range(4):
        log.append(model_call(START_NS + day * DAY_NS), "e1", day + 1)
    wrong: Any = WrongPrices()
    tools.apply(log, prices=wrong)
    await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS, since_ns=START_NS + 2 * DAY_NS)
    cheap, dear = 195_000_000, 1_950_000_000
    assert [cost for (cost,) in rows(store, f"SELECT {COST} FROM cost_day ORDER BY bucket_ns")] == [
        *(dear, dear, cheap, cheap)
    ]
    assert rows(store, f"SELECT {COST}, calls FROM cost_total") == [(2 * cheap + 2 * dear, 4)]


async def test_records_readable_after_an_upgrade_are_counted_once(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    for number in range(1, 6):
        log.append(model_call(START_NS + number * SECOND_NS), "e1", number)
    # Unreadable with a number, foreign to the old version (a gap), and one that stays unreadable.
    new_kind, foreign = log.records[1].value, log.records[2].value
    log.append_value(unreadable("e1", 6))
    log.append(report(START_NS + 20 * SECOND_NS), "e1", 7)
    log.records[1].value = unreadable("e1", 2)
    log.records[2].value = b"\x01 a codec of the future"
    tools.apply(log)
    ledger = seen(store)
    assert (ledger["applied"], ledger["quarantined"], ledger["lost"]) == (4, 2, 1)
    upgraded = Log()
    upgraded.records = [*log.records]
    upgraded.records[1:3] = [
        LogRecord(offset, log.records[offset].timestamp, b"key", value)
        for offset, value in ((1, new_kind), (2, foreign))
    ]
    for _ in range(3):
        for projection in ALL:
            await rebuild(store, projection, ListLogs({0: upgraded}), PRICES, SETTINGS)
        ledger = seen(store)
        assert (ledger["applied"], ledger["quarantined"], ledger["lost"], ledger["in_flight"]) == (6, 1, 0, 0)
        assert [one["quarantined"] for one in ledger["projections"]] == [1] * len(ALL)
        assert rows(store, "SELECT calls FROM cost_total") == [(5,)]
        assert rows(store, "SELECT count(*), count(DISTINCT run_id) FROM runs") == [(5, 5)]


async def test_a_dry_run_writes_nothing_and_tells_the_difference(store: Store, tools: WorkerTools) -> None:
    log = Log()
    for number in range(1, 5):
        log.append(model_call(START_NS + number * DAY_NS // 2, metadata={"team": "red"}), "e1", number)
    wrong: Any = WrongPrices()
    tools.apply(log, prices=wrong)
    before = everything(store)
    found = await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS, is_dry_run=True)
    assert everything(store) == before
    assert (found.from_ns, found.records) == (0, 4)
    days = [day for (day,) in rows(store, "SELECT bucket_ns FROM cost_day ORDER BY 1")]
    cheap, dear = 195_000_000, 1_950_000_000
    assert found.differences == [
        *(
            FigureDifference(table, day, "cost_picodollars", calls * dear, calls * cheap)
            for table in ("cost_by_attribute_day", "cost_day")
            for day, calls in zip(days, (1, 2, 1), strict=True)
        ),
    ]
    for projection in ALL:
        if projection not in ("cost", "runs", "sessions"):
            assert (
                await rebuild(store, projection, ListLogs({0: log}), PRICES, SETTINGS, is_dry_run=True)
            ).differences == []
    await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS)
    assert (await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS, is_dry_run=True)).differences == []


async def test_workers_are_fenced_by_the_switch_and_go_on_with_the_new_rows(store: Store, tools: WorkerTools) -> None:
    log = Log()
    for number in range(1, 11):
        log.append(model_call(START_NS + number), "e1", number)
    part = Log()
    part.records = log.records[:6]
    stale = tools.apply(part)
    await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS)
    assert rows(store, "SELECT generation, calls FROM cost_total") == [(0, 6)]
    folded = stale.fold(log.since(6))
    with pytest.raises(FencedError):
        stale.commit(folded)
    tools.apply(log)
    assert rows(store, "SELECT generation, calls FROM cost_total") == [(0, 10)]
    sketched = rows(store, "SELECT generation, count FROM performance_total")
    assert sketched == [(0, 10)]


def test_retention_judges_each_generation_by_its_own_rows(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(model_call(START_NS, session_id="s-1"), "e1", 1)
    log.append(model_call(START_NS + 80 * DAY_NS, session_id="s-1"), "e1", 2)
    tools.apply(log, projections=("sessions",))
    # A rebuild beside it that has come to the session's first event.
    for table in ("sessions", "session_costs"):
        names = [column.name for column in tables.metadata.tables[table].columns]
        source = ", ".join("1" if name == "generation" else name for name in names)
        with store.engine.begin() as connection:
            connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) SELECT {source} FROM {table}"))
    with store.engine.begin() as connection:
        connection.execute(
            text("UPDATE sessions SET last_at_ns = first_at_ns, last_log_time_ns = first_at_ns WHERE generation = 1")
        )
    log.append(model_call(START_NS + 91 * DAY_NS, session_id="s-2"), "e1", 3)
    tools.apply(log, projections=("sessions",))
    assert rows(store, "SELECT calls FROM session_costs WHERE session_id = 's-1' AND generation = 0") == [(2,)]
    assert rows(store, "SELECT llm_calls FROM sessions WHERE session_id = 's-1' AND generation = 0") == [(2,)]


async def test_a_partition_that_is_added_during_a_rebuild_is_rebuilt_as_well(store: Store, tools: WorkerTools) -> None:
    logs = {0: Log(), 1: Log()}
    for log in logs.values():
        log.append(model_call(START_NS), "e1", 1)
    wrong: Any = WrongPrices()
    tools.apply(logs[0], prices=wrong)
    polls = 0

    def add() -> None:
        nonlocal polls
        polls += 1
        if polls == 1:
            tools.apply(logs[1], 1, prices=wrong)

    done = await rebuild(store, "cost", ListLogs(logs, add), PRICES, SETTINGS)
    assert done.records == 2
    assert rows(store, f"SELECT partition, generation, {COST} FROM cost_total ORDER BY 1") == [
        (0, 0, 195_000_000),
        (1, 0, 195_000_000),
    ]


async def test_another_writer_in_between_makes_it_start_again(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    for number in range(1, 101):
        log.append(model_call(START_NS + number), "e1", number)
    wrong: Any = WrongPrices()
    tools.apply(log, prices=wrong)
    writer = tools.make().writer
    looks = 0
    read_positions = rebuild_statements.read_positions

    def reprice_after_a_look(*arguments: Any) -> Any:
        nonlocal looks
        found = read_positions(*arguments)
        looks += arguments[0].__name__ == "read"
        # Once before anything was folded, once in what may be the last moment before the switch.
        if arguments[0].__name__ == "read" and looks in (1, 4):
            with writer.transaction():
                writer.execute("UPDATE positions SET epoch = epoch + 1 WHERE projection = 'cost'")
        return found

    monkeypatch.setattr(rebuild_statements, "read_positions", reprice_after_a_look)
    done = await rebuild(store, "cost", ListLogs({0: log}), PRICES, SETTINGS.model_copy(update={"commit_events": 500}))
    assert done.records == 100
    # Two attempts were in vain; each looks twice.
    assert looks == 6
    assert rows(store, f"SELECT calls, {COST} FROM cost_total") == [(100, 100 * 195_000_000)]
    assert rows(store, "SELECT projection, epoch, generation FROM positions WHERE projection LIKE 'cost%'") == [
        ("cost", 4, 0)
    ]


async def test_retention_during_a_rebuild_makes_it_start_again_later_in_the_log(
    store: Store, tools: WorkerTools
) -> None:
    log = Log()
    for number in range(1, 201):
        log.append(model_call(START_NS + number * HOUR_NS // 4), "e1", number)
    tools.apply(log)
    before = figures(store, "cost")
    logs = ListLogs({0: trimmed(log, 10)})
    polls = 0

    def delete() -> None:
        nonlocal polls
        polls += 1
        if polls == 2:
            logs.logs[0] = trimmed(log, 100)

    logs._on_poll = delete
    done = await rebuild(store, "cost", logs, PRICES, SETTINGS)
    assert done.from_ns == START_NS + 37 * HOUR_NS
    assert done.records == 100
    assert figures(store, "cost") == before


async def test_what_lands_late_during_a_rebuild_is_judged_by_the_live_marks(store: Store, tools: WorkerTools) -> None:
    log = Log()
    old = [model_call(START_NS + number, run_id=f"old-{number}") for number in range(3)]
    log.append(old[0], "e1", 1)
    log.append(old[0], "e2", 1)
    log.append(old[2], "e1", 3)
    for number in range(4, 8):
        log.append(model_call(START_NS + DAY_NS + number, run_id=f"r-{number}"), "e1", number)
    retained = trimmed(log, 3)
    live = tools.apply(log)
    # Only now: a number of a gap that is older than the log, and a repeat of what is older than the log.
    late = [(old[1], "e1", 2), (old[0], "e2", 1)]
    polls = 0

    def go_on() -> None:
        nonlocal polls
        polls += 1
        if polls == 1:
            for event, emitter, number in late:
                retained.append(event, emitter, number, log_time_ns=START_NS + 2 * DAY_NS)
            live.commit(live.fold(retained.since(7)))

    done = await rebuild(store, "runs", ListLogs({0: retained}, go_on), PRICES, SETTINGS)
    assert done.from_ns == START_NS + 37 * HOUR_NS
    expected = ["old-0", "old-0", "old-1", "old-2", "r-4", "r-5", "r-6", "r-7"]
    assert [run_id for (run_id,) in rows(store, "SELECT run_id FROM runs ORDER BY run_id")] == expected
    assert rows(store, "SELECT emitter, mark, gaps, repeats FROM lane_marks WHERE projection = 'runs' ORDER BY 1") == [
        (id_of("e2"), 1, "[]", 1),
        (id_of("e1"), 7, "[]", 0),
    ]


async def test_what_live_workers_take_for_a_repeat_is_one_to_a_rebuild(store: Store, tools: WorkerTools) -> None:
    # Workers met the lane at number 5: what precedes it was deleted, as far as they know. Number 3 landed late.
    log = Log(first_offset=5)
    for number, hour in ((5, 0), (6, 20), (3, 20), (7, 21)):
        log.append(model_call(START_NS + hour * HOUR_NS, run_id=f"r-{number}"), "e1", number)
    tools.apply(log)
    before = figures(store)
    for first_offset in (5, 6):
        for projection in ALL:
            await rebuild(store, projection, ListLogs({0: trimmed(log, first_offset)}), PRICES, SETTINGS)
        assert figures(store) == before
    assert rows(store, "SELECT calls FROM cost_total") == [(3,)]


async def test_numbers_that_live_workers_did_not_believe_are_none_to_a_rebuild(
    store: Store, tools: WorkerTools
) -> None:
    log = Log()
    for number in range(1, 4):
        log.append(model_call(START_NS + number), "e1", number)
    log.append_value(framed([model_call(START_NS + 4)], "e1", 10**9), START_NS + 4)
    log.append(model_call(START_NS + 5), "e1", 4)
    tools.apply(log)
    before, ledger = figures(store), seen(store)
    # Here it comes first of all that the log still holds of the lane.
    for first_offset in (0, 3):
        for projection in ALL:
            await rebuild(store, projection, ListLogs({0: trimmed(log, first_offset)}), PRICES, SETTINGS)
        assert (figures(store), seen(store)) == (before, ledger)
    assert ledger["impossible"] == 1


@pytest.mark.parametrize("price_set", [PRICES.price_set, "others"], ids=["the same", "other prices"])
async def test_of_two_rebuilds_at_once_one_is_refused_and_the_other_is_exact(
    store: Store, tools: WorkerTools, price_set: str
) -> None:
    history = RandomLogs(3, 300)
    apply_all(tools, history.logs)
    right = figures(store, "cost")
    # The second one asks the same, or for figures that are wrong.
    prices: Any = PRICES if price_set == PRICES.price_set else WrongPrices(price_set=price_set)
    done = await asyncio.gather(
        rebuild(store, "cost", ListLogs(history.logs), PRICES, SETTINGS),
        rebuild(store, "cost", ListLogs(history.logs), prices, SETTINGS),
        return_exceptions=True,
    )
    assert [type(one) for one in done].count(RebuildError) == 1
    if isinstance(done[0], RebuildError) and prices is not PRICES:
        await rebuild(store, "cost", ListLogs(history.logs), PRICES, SETTINGS)
    assert figures(store, "cost") == right


@pytest.mark.parametrize("kind", ["the same", "other prices", "other days", "without its positions"])
async def test_a_killed_rebuild_goes_on_if_it_was_asked_for_the_same(
    store: Store, tools: WorkerTools, kind: str
) -> None:
    history = RandomLogs(3, 300)
    apply_all(tools, history.logs)
    right, ledger = figures(store), seen(store)
    polls = 0

    def die() -> None:
        nonlocal polls
        polls += 1
        if polls > 5:
            raise Killed

    prices: Any = WrongPrices(price_set="others") if kind == "other prices" else PRICES
    since_ns = START_NS + DAY_NS if kind == "other days" else 0
    with pytest.raises(Killed):
        await rebuild(store, "cost", ListLogs(history.logs, die), prices, SETTINGS, since_ns)
    assert len(rows(store, "SELECT DISTINCT generation FROM cost_minute")) == 2
    # Nobody sees any of it.
    assert (figures(store), seen(store)) == (right, ledger)
    if kind == "without its positions":
        with store.engine.begin() as connection:
            connection.execute(text("DELETE FROM positions WHERE projection LIKE 'cost.rebuild%'"))
    done = await rebuild(store, "cost", ListLogs(history.logs), PRICES, SETTINGS)
    records = sum(len(log.records) for log in history.logs.values())
    assert (done.records < records - 30) == (kind == "the same")
    assert figures(store) == right
    for table in (*tables_of("cost"), tables.positions):
        assert {*rows(store, f"SELECT DISTINCT generation FROM {table.name}")} <= {(0,)}
    assert rows(store, "SELECT count(*) FROM lane_marks WHERE projection LIKE '%rebuild%'") == [(0,)]


async def test_what_can_be_read_at_last_in_days_that_stay_is_not_called_applied(
    store: Store, tools: WorkerTools
) -> None:
    log = Log()
    for number in range(1, 9):
        log.append(model_call(START_NS + (number - 1) * 5 * HOUR_NS), "e1", number)
    log.append(report(START_NS + 36 * HOUR_NS), "e1", 9)
    # Of the day that is not whole, and of the one that is replaced: one with its number, one without.
    readable = {offset: log.records[offset].value for offset in (1, 2, 4, 6)}
    for offset in (1, 4):
        log.records[offset].value = unreadable("e1", offset + 1)
    for offset in (2, 6):
        log.records[offset].value = b"\x01 a codec of the future"
    tools.apply(log)
    ledger = seen(store)
    assert (ledger["applied"], ledger["quarantined"], ledger["lost"]) == (5, 2, 2)
    for offset, value in readable.items():
        log.records[offset].value = value
    for _ in range(2):
        for projection in ALL:
            await rebuild(store, projection, ListLogs({0: trimmed(log, 1)}), PRICES, SETTINGS)
        assert rows(store, "SELECT calls FROM cost_total") == rows(store, "SELECT count(*) FROM runs") == [(6,)]
        ledger = seen(store)
        assert (ledger["applied"], ledger["quarantined"], ledger["lost"]) == (7, 1, 1)


async def test_a_fold_that_was_wrong_is_corrected_and_one_that_raises_leaves_all_as_it_was(
    store: Store, tools: WorkerTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RandomLogs(5, 150).logs[0]
    right = PROJECTIONS["errors"]

    def forgetful(batch: Any, attributes: tuple[str, ...]) -> Any:
        batch.ended = batch.ended[::2]
        return right(batch, attributes)

    monkeypatch.setitem(PROJECTIONS, "errors", forgetful)
    tools.apply(log, projections=("errors",))
    wrong = figures(store, "errors")
    monkeypatch.undo()

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(PROJECTIONS, "errors", broken)
    with pytest.raises(RebuildError, match="ZeroDivisionError"):
        await rebuild(store, "errors", ListLogs({0: log}), PRICES, SETTINGS)
    monkeypatch.undo()
    assert figures(store, "errors") == wrong
    await rebuild(store, "errors", ListLogs({0: log}), PRICES, SETTINGS)
    ended = sum(b'"run.ended"' in (record.value or b"") for record in log.records)
    assert ended > 20
    counted = rows(store, "SELECT sum(ok), sum(errors) FROM roots_total")
    assert figures(store, "errors") != wrong
    assert counted[0][1] > sum(row["errors"] for row in wrong["roots_total"])


async def test_a_projection_that_never_ran_is_refused(store: Store) -> None:
    with pytest.raises(RebuildError, match="has no figures yet"):
        await rebuild(store, "cost", ListLogs({}), PRICES, SETTINGS)
    with pytest.raises(RebuildError, match="no projection 'costs'"):
        await rebuild(store, "costs", ListLogs({}), PRICES, SETTINGS)


def test_the_first_whole_day_knows_days_of_23_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    # 2026-03-29 begins at 23:00 UTC and lasts 23 hours.
    midnight = 1_774_738_800 * SECOND_NS
    assert first_whole_day(berlin, midnight) == midnight
    assert first_whole_day(berlin, midnight + 1) == midnight + 23 * HOUR_NS
