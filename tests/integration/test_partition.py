"""A partition in one worker's hands, on SQLite and on PostgreSQL; the log is a list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from cost_sql import COST, COST_SUM, DURATION_SUM
from partition_setting import SESSION_COSTS
from runtap_consumers.errors import FencedError
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.figures.report import build_report, read_completeness
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.dimensions import Dimensions
from runtap_consumers.projections.sketch import quantiles_ns
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dimension_values import read_full
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS
from runtap_consumers.worker import partition as partitions
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import Usage, encode_event
from samples import (
    SECOND_NS,
    START_NS,
    Log,
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

ALL = tuple(PROJECTIONS)
PRICES = PriceTable.load()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", "Europe/Berlin")
    yield opened
    opened.close()


@pytest.fixture
def tools(store: Store) -> Iterator[Callable[[], Tools]]:
    """Makes the tools of one worker; each call stands for another process."""
    writers: list[Writer] = []

    def make() -> Tools:
        writer = Writer.of(store)
        writers.append(writer)
        return Tools.of(store, writer, PRICES, ConsumerSettings.load(cost_by="metadata.team"))

    yield make
    for writer in writers:
        writer.close()


def worker(tools: Callable[[], Tools], projections: tuple[str, ...] = ALL, log_start: int = 0) -> Partition:
    partition = Partition(0, projections, tools())
    partition.load(log_start)
    return partition


def apply(partition: Partition, log: Log, at_most: int | None = None) -> None:
    records = log.since(partition.next_offset, at_most)
    partition.commit(partition.fold(records))


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def one(store: Store, query: str) -> tuple[Any, ...]:
    (row,) = rows(store, query)
    return row


def mixed_log() -> Log:
    log = Log()
    log.append(session_start(START_NS), "e1", 1)
    log.append(run_start(START_NS + 1), "e1", 2)
    log.append(
        model_call(START_NS + 10 * SECOND_NS, session_id="s-1", user_id="u-7", metadata={"team": "red"}), "e1", 3
    )
    log.append(
        model_call(
            START_NS + 70 * SECOND_NS, session_id="s-1", model="unheard-of", provider="nobody", request_model=None
        ),
        "e1",
        4,
    )
    log.append(model_call(START_NS + 2 * 3600 * SECOND_NS, usage=None, usage_source="none"), "e1", 5)
    tool = chain_end(
        START_NS + 71 * SECOND_NS,
        run_type="tool",
        name="lookup",
        is_root=False,
        parent_run_id="chain",
        status="error",
        error=failure(),
        session_id="s-1",
    )
    log.append(tool, "e1", 6)
    for number, is_root in ((7, False), (8, True)):
        ancestor = chain_end(
            START_NS + (71 + number) * SECOND_NS,
            is_root=is_root,
            status="error",
            error=failure(origin=False),
            session_id="s-1",
            run_id=f"chain-{START_NS + 1}",
        )
        log.append(ancestor, "e1", number)
    log.append(session_end(START_NS + 80 * SECOND_NS), "e1", 9)
    log.append(report(START_NS + 90 * SECOND_NS), "e1", 10)
    return log


COST_SUMS = (
    "sum(calls), sum(priced_calls), sum(unpriced_calls), sum(unmetered_calls), sum(input_tokens), "
    f"sum(cache_read_tokens), sum(output_tokens), {COST_SUM}"
)
# 800 * 0.15 + 200 * 0.075 + 100 * 0.6 dollars a million.
CALL_PICODOLLARS = 195 * 10**6


@pytest.mark.parametrize("grain", ["minute", "hour", "day", "total"])
def test_every_grain_holds_the_same_sums(store: Store, tools: Callable[[], Tools], grain: str) -> None:
    apply(worker(tools), mixed_log())
    assert one(store, f"SELECT {COST_SUMS} FROM cost_{grain}") == (3, 1, 1, 1, 2000, 400, 200, CALL_PICODOLLARS)
    counted = f"sum(count), sum(ok), sum(errors), {DURATION_SUM}, min(min_ns), max(max_ns), sum(first_token_count)"
    assert one(store, f"SELECT {counted} FROM performance_{grain}") == (
        6,
        3,
        3,
        15 * SECOND_NS,
        2 * SECOND_NS,
        3 * SECOND_NS,
        3,
    )
    assert one(store, f"SELECT sum(count) FROM errors_{grain}") == (1,)
    assert one(store, f"SELECT sum(ok), sum(errors) FROM roots_{grain}") == (0, 1)


def test_buckets_are_minutes_hours_and_local_days_of_the_end(store: Store, tools: Callable[[], Tools]) -> None:
    apply(worker(tools), mixed_log())
    hours = [START_NS, START_NS + 2 * HOUR_NS]
    assert [bucket for (bucket,) in rows(store, "SELECT DISTINCT bucket_ns FROM cost_minute ORDER BY 1")] == [
        START_NS,
        START_NS + MINUTE_NS,
        START_NS + 2 * HOUR_NS,
    ]
    assert [bucket for (bucket,) in rows(store, "SELECT DISTINCT bucket_ns FROM cost_hour ORDER BY 1")] == hours
    # Berlin is an hour ahead of UTC in March: its midnight is 23:00 of the day before.
    assert rows(store, "SELECT DISTINCT bucket_ns FROM cost_day") == [(START_NS - 11 * HOUR_NS,)]


def test_sketches_of_later_commits_and_of_another_worker_add_up(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    for number in range(1, 101):
        log.append(model_call(START_NS + number, duration_ns=number * 10_000_000), "e1", number)
    first = worker(tools)
    apply(first, log, 30)
    apply(first, log, 30)
    apply(worker(tools), log)
    for grain in ("minute", "hour", "day"):
        ((sketch,),) = rows(store, f"SELECT sketch FROM performance_{grain}")
        median, p99 = quantiles_ns(bytes(sketch), [0.5, 0.99])
        assert median == pytest.approx(0.505 * 10**9, rel=0.02)
        assert p99 == pytest.approx(0.99 * 10**9, rel=0.02)


def test_attributes_sessions_and_runs_hold_the_facts(store: Store, tools: Callable[[], Tools]) -> None:
    apply(worker(tools), mixed_log())
    attributes = rows(store, f"SELECT attribute, value, calls, {COST} FROM cost_by_attribute_hour ORDER BY 1")
    assert attributes == [("team", "red", 1, CALL_PICODOLLARS), ("user", "u-7", 1, CALL_PICODOLLARS)]
    columns = (
        "starts, ends, traces, llm_calls, tool_calls, errors, input_tokens, output_tokens, first_at_ns, last_at_ns"
    )
    # A row for its user, and one for what names none.
    assert rows(store, "SELECT user_id FROM sessions ORDER BY 1") == [("",), ("u-7",)]
    extremes = {"first_at_ns": "min", "last_at_ns": "max"}
    sums = ", ".join(f"{extremes.get(name, 'sum')}({name})" for name in columns.split(", "))
    assert one(store, f"SELECT {sums} FROM sessions") == (
        1,
        1,
        1,
        2,
        1,
        1,
        2000,
        200,
        START_NS,
        START_NS + 80 * SECOND_NS,
    )
    costs = rows(store, f"SELECT model, unpriced_calls, {COST} FROM {SESSION_COSTS} ORDER BY model")
    assert costs == [("gpt-4o-mini-2024-07-18", 0, CALL_PICODOLLARS), ("unheard-of", 1, 0)]
    assert one(store, "SELECT count(*), sum(cost_picodollars) FROM runs") == (6, CALL_PICODOLLARS)
    # Its start was sent, its end came: it is no longer open.
    assert rows(store, "SELECT run_id FROM open_runs") == []
    assert one(store, "SELECT count(*) FROM runs WHERE usage_source = 'none' AND input_tokens IS NULL") == (4,)


@pytest.mark.parametrize("known", [100_000, 1])
@pytest.mark.parametrize("is_same_worker", [True, False])
def test_open_run_stays_until_its_end_comes(
    store: Store, tools: Callable[[], Tools], known: int, is_same_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_MAX_OPEN_RUNS_KNOWN", known)
    log = Log()
    log.append(run_start(START_NS, run_id="r-1", session_id="s-9"), "e1", 1)
    for number in (2, 3):
        log.append(run_start(START_NS, run_id=f"r-{number}"), "e1", number)
    partition = worker(tools)
    apply(partition, log)
    opened = "SELECT run_id, session_id, started_at_ns FROM open_runs WHERE run_id = 'r-1'"
    assert rows(store, opened) == [("r-1", "s-9", START_NS)]
    if not is_same_worker:
        partition = worker(tools)
    for number in (1, 3, 4):
        log.append(chain_end(START_NS + SECOND_NS, run_id=f"r-{number}"), "e1", 3 + number - number // 3)
    apply(partition, log)
    assert rows(store, "SELECT run_id FROM open_runs") == [("r-2",)]


def test_repeats_leave_totals_unchanged_and_are_counted(store: Store, tools: Callable[[], Tools]) -> None:
    log = mixed_log()
    partition = worker(tools)
    apply(partition, log)
    before = [rows(store, f"SELECT * FROM {table}") for table in ("cost_total", "sessions", "runs", "errors_hour")]
    for record in log.records[2:6]:
        log.append_value(record.value, START_NS + DAY_NS)
    apply(partition, log)
    assert worker(tools).next_offset == 14
    after = [rows(store, f"SELECT * FROM {table}") for table in ("cost_total", "sessions", "runs", "errors_hour")]
    assert after == before
    assert rows(store, "SELECT DISTINCT repeats, mark FROM lane_marks") == [(4, 10)]


def test_a_late_number_fills_its_gap_once(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    partition = worker(tools, ("cost",))
    for number in (1, 5, 3, 3, 6):
        log.append(model_call(START_NS + number), "e1", number)
    apply(partition, log)
    assert one(store, "SELECT calls FROM cost_total") == (4,)
    assert one(store, "SELECT mark, gaps, repeats FROM lane_marks") == (6, "[[2,2],[4,4]]", 1)
    again = worker(tools, ("cost",))
    for number in (2, 4, 2):
        log.append(model_call(START_NS + number), "e1", number)
    apply(again, log)
    assert one(store, "SELECT calls FROM cost_total") == (6,)
    assert one(store, "SELECT mark, gaps, repeats FROM lane_marks") == (6, "[]", 2)


def test_each_projection_has_marks_of_its_own(store: Store, tools: Callable[[], Tools]) -> None:
    log = mixed_log()
    apply(worker(tools, ("cost",)), log)
    both = worker(tools, ("cost", "performance"))
    assert both.next_offset == 0
    apply(both, log)
    assert one(store, f"SELECT {COST_SUMS} FROM cost_total")[0] == 3
    assert one(store, "SELECT sum(count) FROM performance_total") == (6,)
    assert rows(store, "SELECT projection, mark, repeats FROM lane_marks ORDER BY 1") == [
        ("cost", 10, 0),
        ("performance", 10, 0),
    ]


def test_the_slower_of_two_workers_writes_nothing(store: Store, tools: Callable[[], Tools]) -> None:
    log = mixed_log()
    slow, quick = worker(tools), worker(tools)
    folded = slow.fold(log.since(0, 4))
    apply(quick, log)
    with pytest.raises(FencedError):
        slow.commit(folded)
    assert one(store, f"SELECT {COST_SUMS} FROM cost_total")[0] == 3
    assert one(store, "SELECT count(*) FROM runs") == (6,)
    assert one(store, "SELECT min(next_offset), max(next_offset) FROM positions") == (10, 10)


def test_raised_epoch_fences_a_worker_at_the_same_offset(store: Store, tools: Callable[[], Tools]) -> None:
    log = mixed_log()
    partition = worker(tools, ("cost",))
    folded = partition.fold(log.since(0))
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE positions SET epoch = epoch + 1"))
    with pytest.raises(FencedError):
        partition.commit(folded)
    assert rows(store, "SELECT * FROM cost_total") == []


def test_unreadable_records_are_dead_letters_and_the_partition_goes_on(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    log.append_value(b"not json")
    log.append_value(None)
    log.append_value(unreadable("e1", 2))
    bad_usage = log.append(model_call(START_NS), "e1", 3)
    assert bad_usage.value is not None
    bad_usage.value = bad_usage.value.replace(b'"input_tokens":1000', b'"input_tokens":-1000')
    log.append_value(framed([b'{"type":"run.dreamt"}'], "e1", 4))
    log.append(model_call(START_NS), "e1", 5)
    apply(worker(tools), log)
    assert one(store, "SELECT calls FROM cost_total") == (2,)
    causes = rows(store, "SELECT log_offset, cause FROM dead_letters ORDER BY log_offset")
    assert [offset for offset, _ in causes] == [1, 2, 3, 4]
    assert "malformed" in causes[0][1]
    assert "no value" in causes[1][1]
    assert "version 2" in causes[2][1]
    assert "input_tokens" in causes[3][1]
    assert rows(store, "SELECT DISTINCT mark, gaps, quarantined FROM lane_marks") == [(5, "[]", 2)]
    assert rows(store, "SELECT type, count FROM skipped_types") == [("run.dreamt", 1)]


def test_a_new_incarnation_keeps_marks_so_that_a_resend_counts_once(store: Store, tools: Callable[[], Tools]) -> None:
    log = mixed_log()
    partition = worker(tools)
    apply(partition, log)
    partition = worker(tools)
    partition.begin_incarnation(0, START_NS)
    fresh = Log()
    fresh.append_value(log.records[9].value, START_NS)
    fresh.append(model_call(START_NS + SECOND_NS), "e1", 11)
    again = worker(tools)
    assert again.next_offset == 0
    apply(again, fresh)
    assert one(store, "SELECT sum(calls) FROM cost_total") == (4,)
    assert rows(store, "SELECT DISTINCT incarnation, next_offset FROM positions") == [(2, 2)]
    assert rows(store, "SELECT DISTINCT kind, first_offset FROM log_incidents") == [("recreated", 10)]


def test_a_worker_that_follows_the_old_log_is_fenced(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    stale, other = worker(tools, ("cost",)), worker(tools, ("cost",))
    other.begin_incarnation(0, START_NS)
    log.append(model_call(START_NS), "e1", 1)
    with pytest.raises(FencedError):
        apply(stale, log)


def test_projections_at_one_offset_keep_to_their_own_marks(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    for number in range(1, 6):
        log.append(model_call(START_NS + number), "e1", number)
    apply(worker(tools, ("cost",)), log)
    apply(worker(tools, ("runs",)), log, 2)
    worker(tools, ("cost", "runs")).begin_incarnation(0, START_NS)
    fresh = Log()
    for number in (4, 5, 6):
        fresh.append(model_call(START_NS + number), "e1", number)
    apply(worker(tools, ("cost", "runs")), fresh)
    assert one(store, "SELECT sum(calls) FROM cost_total") == (6,)
    assert one(store, "SELECT count(*) FROM runs") == (5,)
    assert rows(store, "SELECT projection, mark, gaps FROM lane_marks ORDER BY 1") == [
        ("cost", 6, "[]"),
        ("runs", 6, "[[3,3]]"),
    ]


def test_positions_are_moved_in_the_order_of_their_names(
    store: Store, tools: Callable[[], Tools], monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = worker(tools, ("sessions", "cost", "ledger"))
    folded = partition.fold(mixed_log().since(0))
    folded.moves.reverse()
    moved: list[str] = []
    writer = partition._tools.writer
    execute = writer.execute

    def watched(statement: str, parameters: Any = ()) -> int:
        if statement.startswith("UPDATE positions"):
            moved.append(parameters[6])
        return execute(statement, parameters)

    monkeypatch.setattr(writer, "execute", watched)
    partition.commit(folded)
    # Two workers that lock the same rows in two orders would wait for each other.
    assert moved == ["cost", "ledger", "sessions"]


def test_numbers_before_the_log_start_are_before_and_not_lost(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log(first_offset=500)
    log.append(model_call(START_NS), "e1", 900)
    partition = worker(tools, ("cost",), log_start=500)
    apply(partition, log)
    assert one(store, "SELECT mark, gaps, before FROM lane_marks") == (900, "[]", 899)


def test_retention_that_overtook_a_worker_is_recorded_with_its_offsets(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = mixed_log()
    apply(worker(tools, ("cost",)), log, 3)
    partition = worker(tools, ("cost",))
    partition.skip_lost(7, START_NS)
    partition = worker(tools, ("cost",), log_start=7)
    apply(partition, log)
    assert rows(store, "SELECT kind, first_offset, last_offset FROM log_incidents") == [("retention", 3, 6)]
    assert one(store, "SELECT mark, gaps FROM lane_marks") == (10, "[[4,7]]")


def test_what_retention_takes_under_a_projection_that_began_late_is_lost_and_not_before(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log(first_offset=500)
    log.append(model_call(START_NS), "e1", 900)
    for number in range(1, 21):
        log.append(model_call(START_NS + number), "e2", number)
    apply(worker(tools, ("cost",), log_start=500), log, 1)
    # Ten calls of a lane that nobody has met go unread, and ten of them are still there.
    worker(tools, ("cost",)).skip_lost(511, START_NS)
    apply(worker(tools, ("cost",), log_start=511), log)
    assert one(store, "SELECT begun_at FROM positions") == (0,)
    assert rows(store, "SELECT mark, gaps, before FROM lane_marks ORDER BY mark") == [
        (20, "[[1,10]]", 0),
        (900, "[]", 899),
    ]
    with open_snapshot(store) as snapshot:
        ledger = build_ledger(snapshot, store.zone)
    assert (ledger["captured"], ledger["applied"], ledger["lost"]) == (21, 11, 10)


def test_a_projection_that_had_read_nothing_begins_where_retention_has_come_to(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log(first_offset=500)
    for number in range(900, 920):
        log.append(model_call(START_NS + number), "e1", number)
    worker(tools, ("cost",), log_start=500).skip_lost(510, START_NS)
    apply(worker(tools, ("cost",), log_start=510), log)
    assert one(store, "SELECT mark, gaps, before FROM lane_marks") == (919, "[]", 909)
    assert one(store, "SELECT begun_at FROM positions") == (510,)


def test_a_clock_that_is_wrong_moves_the_event_to_log_time(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    log.append(model_call(START_NS + HOUR_NS), "e1", 1, log_time_ns=START_NS)
    log.append(model_call(START_NS - 9 * DAY_NS), "e1", 2, log_time_ns=START_NS)
    log.append(model_call(START_NS - DAY_NS), "e1", 3, log_time_ns=START_NS)
    apply(worker(tools), log)
    assert rows(store, "SELECT bucket_ns, calls FROM cost_hour ORDER BY 1") == [
        (START_NS - DAY_NS, 1),
        (START_NS, 2),
    ]
    assert rows(store, "SELECT service, count FROM skewed_events") == [("checkout", 2)]


def test_rows_past_their_retention_go_and_stay_gone(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    partition = worker(tools)
    log.append(model_call(START_NS, user_id="ann"), "e1", 1)
    apply(partition, log)
    log.append(model_call(START_NS + 7 * DAY_NS + HOUR_NS, user_id="ann"), "e1", 2)
    log.append(model_call(START_NS, user_id="ann"), "e1", 3, log_time_ns=START_NS + 7 * DAY_NS + HOUR_NS)
    apply(partition, log)
    assert rows(store, "SELECT bucket_ns, calls FROM cost_minute") == [(START_NS + 7 * DAY_NS + HOUR_NS, 1)]
    assert rows(store, "SELECT bucket_ns FROM performance_minute") == [(START_NS + 7 * DAY_NS + HOUR_NS,)]
    assert one(store, "SELECT sum(calls) FROM cost_hour") == (3,)
    # Costs by attribute are in their hour, and when that is over in its day, also those that came late.
    assert rows(store, "SELECT bucket_ns, calls FROM cost_by_attribute_hour WHERE attribute = 'user'") == [
        (START_NS + 7 * DAY_NS + HOUR_NS, 1)
    ]
    # Midnight in Berlin.
    days = [(START_NS - 11 * HOUR_NS, 2)]
    assert rows(store, "SELECT bucket_ns, calls FROM cost_by_attribute_day WHERE attribute = 'user'") == days
    # The run that ended seven days ago was deleted; the late one was inserted in the same commit, by its log time.
    assert one(store, "SELECT count(*) FROM runs") == (2,)


def test_a_session_goes_when_the_last_of_its_users_is_silent_for_long(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    for number, (day, session, user) in enumerate(
        [(0, "two", "ann"), (0, "one", "ann"), (80, "two", "ben"), (91, "new", "ann"), (171, "new", "ann")], start=1
    ):
        log.append(model_call(START_NS + day * DAY_NS, session_id=session, user_id=user), "e1", number)
    partition = worker(tools, ("sessions",))
    for records in (2, 1, 1):
        apply(partition, log, records)
    found = "SELECT session_id, user_id FROM sessions ORDER BY 1, 2"
    assert rows(store, found) == [("new", "ann"), ("two", "ann"), ("two", "ben")]
    assert rows(store, "SELECT session_id, calls FROM session_costs ORDER BY 1") == [("new", 1), ("two", 2)]
    apply(partition, log)
    assert rows(store, found) == [("new", "ann")]
    assert rows(store, "SELECT session_id, calls FROM session_costs") == [("new", 2)]


def test_a_lane_keeps_its_marks_while_the_log_holds_anything_of_it(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    partition = worker(tools)
    for day in (0, 15, 16):
        log.append(model_call(START_NS + day * DAY_NS), f"e{day}", 1)
    apply(partition, log, at_most=1)
    lanes = "SELECT DISTINCT emitter FROM lane_marks ORDER BY 1"
    apply(partition, log, at_most=1)
    assert rows(store, lanes) == sorted([(id_of("e0"),), (id_of("e15"),)])
    partition.log_start_ns = START_NS + 2 * DAY_NS
    apply(partition, log)
    assert rows(store, lanes) == sorted([(id_of("e15"),), (id_of("e16"),)])


def test_a_lane_that_one_projection_still_hears_of_keeps_its_marks_in_all(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    for number, day in ((1, 0), (2, 10)):
        log.append(model_call(START_NS + day * DAY_NS), "e0", number)
    log.append(model_call(START_NS + 23 * DAY_NS), "e1", 1)
    apply(worker(tools, ("cost",)), log, 1)
    ahead = worker(tools, ("runs",))
    ahead.log_start_ns = START_NS + 9 * DAY_NS
    for _ in log.records:
        apply(ahead, log, at_most=1)
    # The other one goes on where it stood, and has lost nothing.
    apply(worker(tools, ("cost",)), log)
    assert rows(store, "SELECT DISTINCT gaps FROM lane_marks") == [("[]",)]
    assert one(store, "SELECT sum(calls) FROM cost_total") == (3,)


def test_who_is_not_where_the_position_stands_notes_no_end(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    log.append(model_call(START_NS), "e1", 1)
    stale, other = worker(tools, ("cost",)), worker(tools, ("cost",))
    apply(other, log)
    with pytest.raises(FencedError):
        stale.note_caught_up(START_NS)
    assert one(store, "SELECT caught_up_at_ns FROM positions") == (0,)
    other.note_caught_up(START_NS + 1)
    assert one(store, "SELECT caught_up_at_ns FROM positions") == (START_NS + 1,)


def test_a_late_event_does_not_bring_an_expired_bucket_back(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    partition = worker(tools)
    much_later = START_NS + 3 * DAY_NS
    log.append(model_call(START_NS), "e1", 1)
    apply(partition, log)
    log.append(model_call(much_later), "e1", 2)
    apply(partition, log)
    # Within the minute in which nothing more is deleted; the sketch of the row that went may still be in memory.
    log.append(model_call(START_NS), "e1", 3, log_time_ns=much_later + SECOND_NS)
    apply(partition, log)
    for table in ("cost_minute", "performance_minute"):
        assert rows(store, f"SELECT bucket_ns FROM {table}") == [(much_later,)]
    assert one(store, "SELECT sum(calls) FROM cost_total") == (3,)


def test_a_fast_clock_cannot_claim_the_future(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    log.append(report(START_NS + HOUR_NS), "e1", 1, log_time_ns=START_NS)
    apply(worker(tools, ("ledger",)), log)
    with open_snapshot(store) as snapshot:
        assert read_completeness(snapshot, ("ledger",)).at_ns == START_NS


def test_names_beyond_the_cap_count_under_other(
    store: Store, tools: Callable[[], Tools], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtap_consumers.projections.dimensions.DEFAULT_CAP", 3)
    log = Log()
    for number in range(1, 7):
        log.append(model_call(START_NS + number, name=f"name-{number}", run_id=f"r-{number}"), "e1", number)
    log.append(model_call(START_NS + 7, name="name-1", run_id="r-7"), "e1", 7)
    for number in range(8, 10):
        log.append(chain_end(START_NS, name=f"name-{number}", run_id=f"c-{number}", service="search"), "e1", number)
    apply(worker(tools), log)
    counted = rows(store, "SELECT name, sum(count) FROM performance_total GROUP BY name ORDER BY name")
    # Each service for itself.
    assert counted == [("__other__", 3), ("name-1", 2), *((f"name-{number}", 1) for number in (2, 3, 8, 9))]
    with store.read() as connection:
        assert read_full(connection) == ["name/checkout"]
    # Facts keep their names, and what a model is called elsewhere does not change its price.
    assert one(store, "SELECT count(DISTINCT name) FROM runs") == (8,)
    assert one(store, f"SELECT {COST_SUM} FROM cost_total") == (7 * CALL_PICODOLLARS,)


def test_largest_values_that_the_contract_lets_through_do_not_stop_a_partition(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    most = Usage(input_tokens=10**9, output_tokens=10**9)
    for number in range(1, 101):
        log.append(
            model_call(
                START_NS,
                model="gpt-4.5-preview",
                usage=most,
                duration_ns=10**16,
                started_at_ns=2**63 - 1,
                name="n" * 200,
            ),
            "e1",
            number,
        )
    apply(worker(tools), log)
    counted = one(store, "SELECT sum(calls), sum(unpriced_calls), sum(input_tokens) FROM cost_total")
    assert counted == (100, 100, 100 * 10**9)
    assert one(store, f"SELECT {DURATION_SUM} FROM performance_total") == (100 * 10**16,)


def test_sums_have_room_for_what_passes_64_bits(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    usage = Usage(input_tokens=10**9, output_tokens=10**9)
    for number in range(1, 2_001):
        facts: dict[str, Any] = {"reported_cost_usd": "9999.999999999999", "session_id": "s", "user_id": "u"}
        event = model_call(START_NS, run_id=f"r-{number}", usage=usage, duration_ns=10**16, **facts)
        log.append(event, "e1", number)
    partition = worker(tools)
    # More than 64 bits in a batch, and in what several add up to.
    for at_most in (1_500, 499, 1):
        apply(partition, log, at_most)
    cost, duration = 2_000 * (10**16 - 1), 2_000 * 10**16
    assert min(cost, duration) > 2**64
    for table in ("cost_minute", "cost_hour", "cost_day", "cost_total", "cost_by_attribute_hour", "session_costs"):
        calls, dollars, rest = one(store, f"SELECT calls, cost_microdollars, cost_picodollars FROM {table}")
        assert (calls, dollars * 10**6 + rest) == (2_000, cost), table
    for grain in ("minute", "hour", "day", "total"):
        columns = "count, total_seconds, total_ns, output_seconds, output_ns"
        count, seconds, rest, output_seconds, output_rest = one(store, f"SELECT {columns} FROM performance_{grain}")
        assert (count, seconds * 10**9 + rest, output_seconds * 10**9 + output_rest) == (2_000, duration, duration)
    report = build_report(store, START_NS - HOUR_NS, START_NS + HOUR_NS, None, ZoneInfo("UTC"), START_NS + HOUR_NS)
    assert report["cost"]["cost_usd"] == "19999999.999999998"
    (session,) = report["sessions"]
    assert session["cost_usd"] == "19999999.999999998"
    assert report["performance_by_run_type"]["llm"]["total_seconds"] == 2 * 10**10


def test_metadata_integers_beyond_64_bits_are_dead_letters_and_stop_nothing(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    line = encode_event(model_call(START_NS, metadata={"order": 7}))
    log.append_value(framed([line.replace(b'"order":7', b'"order":1' + b"0" * 30)], "e1", 1))
    partition = worker(tools)
    apply(partition, log)
    assert rows(store, "SELECT metadata FROM runs") == []
    assert one(store, "SELECT emitter, sequence FROM dead_letters") == (id_of("e1"), 1)


def test_labels_that_no_projection_reads_are_checked_all_the_same_and_others_have_them(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    log.append(model_call(START_NS, tags=["web"], metadata={"team": "red"}), "e1", 1)
    line = encode_event(model_call(START_NS, metadata={"team": "red"}))
    log.append_value(framed([line.replace(b'"red"', b"null")], "e1", 2))
    without_attributes = tools()
    without_attributes.dimensions = Dimensions(lambda _, values: values)
    without_attributes.settings = ConsumerSettings.load()
    for projections in (("cost", "ledger"), ("runs",)):
        partition = Partition(0, projections, without_attributes)
        partition.load(0)
        apply(partition, log)
    assert one(store, "SELECT sum(calls) FROM cost_total") == (1,)
    assert rows(store, "SELECT emitter, sequence FROM dead_letters") == [(id_of("e1"), 2)]
    assert one(store, "SELECT tags, metadata FROM runs") == ('["web"]', '{"team":"red"}')


def test_costs_are_attributed_to_metadata_where_single_runs_are_not_kept(
    store: Store, tools: Callable[[], Tools]
) -> None:
    log = Log()
    log.append(model_call(START_NS, metadata={"team": "red"}), "e1", 1)
    apply(worker(tools, ("cost",)), log)
    assert rows(store, "SELECT value, calls FROM cost_by_attribute_hour WHERE attribute = 'team'") == [("red", 1)]


def test_a_cached_call_is_free_and_a_reported_cost_beats_the_table(store: Store, tools: Callable[[], Tools]) -> None:
    log = Log()
    log.append(model_call(START_NS, usage_source="cache"), "e1", 1)
    usage = Usage(input_tokens=10, output_tokens=1)
    log.append(model_call(START_NS, usage=usage, reported_cost_usd="0.0123"), "e1", 2)
    apply(worker(tools, ("cost",)), log)
    assert rows(
        store,
        f"SELECT price_set, price_class, cached_calls, priced_calls, input_tokens, {COST} "
        "FROM cost_total ORDER BY price_class",
    ) == [
        (PRICES.price_set, "cached", 1, 1, 0, 0),
        ("provider", "reported", 0, 1, 10, 12_300_000_000),
    ]
