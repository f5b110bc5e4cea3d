"""Costs by anything, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from partition_setting import pass_hours_on, rows
from runtap_consumers.errors import InputError
from runtap_consumers.figures.changes import PARTS, CostChanges, build_changes
from runtap_consumers.figures.costs import CostQuestion, build_costs
from runtap_consumers.figures.words import Row
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import retention
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import Usage
from samples import START_NS, Log, model_call
from worker_process import WorkerSetting

UTC = ZoneInfo("UTC")
Span = tuple[int | None, int | None]
CALLS: list[dict[str, Any]] = [
    {"metadata": {"team": "red"}, "user_id": "ann", "tags": ["a", "b"], "root_name": "answer"},
    {"metadata": {"team": "red"}},
    {"metadata": {"team": 7}, "model": "unheard-of", "request_model": None, "provider": "nobody"},
    {"metadata": {"feature": "search"}, "user_id": "ben"},
    {"metadata": {"team": "red"}, "user_id": "ann", "at_ns": START_NS - 2 * HOUR_NS},
    # When hours are gone and days are not.
    {"metadata": {"team": "red"}, "service": "search", "at_ns": START_NS - 3 * DAY_NS},
]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", "UTC")
    log = Log()
    for number, facts in enumerate(CALLS):
        log.append(model_call(**{"at_ns": START_NS + number, "run_id": f"r-{number}", **facts}), "e1", number + 1)
    with Writer.of(opened) as writer:
        settings = ConsumerSettings.load(cost_by="metadata.team")
        partition = Partition(0, tuple(PROJECTIONS), Tools.of(opened, writer, PriceTable.load(), settings))
        partition.load(0)
        partition.commit(partition.fold(log.since(0)))
    yield opened
    opened.close()


def ask(store: Store, *by: str, since: int = START_NS, end: int = START_NS + HOUR_NS, **where: str) -> Row:
    return build_costs(store, PriceTable.load(), CostQuestion(by, since, end, where), ("feature",), UTC, end)


def attributed(
    store: Store, attribute: str, since: int = START_NS, service: str | None = None
) -> list[tuple[Any, ...]]:
    where: dict[str, Any] = {} if service is None else {"service": service}
    figures = ask(store, attribute, since=since, **where)
    name = attribute.removeprefix("metadata.")
    names = ("calls", "unpriced_calls", "input_tokens", "cost_usd")
    return [
        tuple(figures["total"][name] for name in names),
        *((row[name], *(row[each] for each in names)) for row in figures["rows"]),
    ]


def test_costs_add_up_by_value_and_what_has_none_is_shown(store: Store) -> None:
    assert attributed(store, "team") == [
        (4, 1, 4_000, "0.000585"),
        ("red", 2, 0, 2_000, "0.00039"),
        ("7", 1, 1, 1_000, None),
        (None, 1, 0, 1_000, "0.000195"),
    ]
    assert attributed(store, "metadata.team", START_NS - 2 * HOUR_NS)[1] == ("red", 3, 0, 3_000, "0.000585")
    assert [row[0] for row in attributed(store, "user")[1:]] == ["ann", "ben", None]
    # Configured, and nothing folded under it yet.
    assert attributed(store, "feature") == [(4, 1, 4_000, "0.000585"), (None, 4, 1, 4_000, "0.000585")]


def test_days_answer_where_hours_are_no_longer_kept(store: Store) -> None:
    whole = attributed(store, "team", START_NS - 3 * DAY_NS)
    pass_hours_on(store, START_NS)
    hours = "SELECT DISTINCT bucket_ns FROM cost_by_attribute_hour ORDER BY 1"
    assert rows(store, hours) == [(START_NS - 2 * HOUR_NS,), (START_NS,)]
    assert attributed(store, "team", START_NS - 3 * DAY_NS) == whole
    assert whole[:2] == [
        (6, 1, 6_000, "0.000975"),
        ("red", 4, 0, 4_000, "0.00078"),
    ]
    # Nothing is said of what is older than the oldest day: all of it would seem to be without a value.
    figures = ask(store, "team", since=START_NS - 900 * DAY_NS, end=START_NS)
    assert figures["range"]["from"] == "2025-01-27T00:00:00.000000Z"


def test_hours_pass_into_days_piece_by_piece_and_nothing_is_between(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ROWS_PASSED_AT_ONCE", 1)
    since = START_NS - 3 * DAY_NS
    whole = attributed(store, "team", since), attributed(store, "user", since)
    left: list[tuple[int, ...]] = []
    with Writer.of(store) as writer:
        while changes := retention.passed_hours(writer, "cost", (0, 0), START_NS + 9 * DAY_NS, Calendar(UTC)):
            with writer.transaction():
                for statement, parameters in changes:
                    writer.execute(statement, parameters)
            assert (
                attributed(store, "team", START_NS - 3 * DAY_NS),
                attributed(store, "user", START_NS - 3 * DAY_NS),
            ) == whole
            left += rows(store, "SELECT count(*) FROM cost_by_attribute_hour")
    # No more than two at a time: those of one value together.
    assert len(left) >= 4
    assert left[-1] == (0,)


def test_costs_of_one_service_are_attributed_alone(store: Store) -> None:
    assert attributed(store, "team", START_NS - 3 * DAY_NS, "search") == [
        (1, 0, 1_000, "0.000195"),
        ("red", 1, 0, 1_000, "0.000195"),
    ]
    assert attributed(store, "team", service="search") == [(0, 0, 0, "0")]


def test_an_attribute_that_nobody_asked_for_is_refused_with_those_there_are(store: Store) -> None:
    with pytest.raises(InputError, match="user, root, feature, team, name, tag"):
        attributed(store, "colour")
    for by in ((), ("model", "model"), ("user", "team"), ("model", "provider", "user"), ("user", "hour")):
        with pytest.raises(InputError):
            ask(store, *by, since=START_NS - 30 * DAY_NS)


def test_a_range_of_centuries_has_points_only_where_there_were_calls(store: Store) -> None:
    buckets = ask(store, "model", since=0, end=9 * 10**18)["buckets"]
    assert [bucket[:10] for bucket in buckets] == ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"]


def by_key(figures: Row) -> dict[tuple[Any, ...], tuple[int, str | None]]:
    """Calls and cost of each row."""
    return {tuple(row[name] for name in figures["by"]): (row["calls"], row["cost_usd"]) for row in figures["rows"]}


def test_costs_are_cut_by_time_and_by_what_calls_are_counted_under(store: Store) -> None:
    since = START_NS - 3 * DAY_NS
    assert by_key(ask(store, "day", since=since)) == {
        ("2026-02-27T00:00:00.000000Z",): (1, "0.000195"),
        ("2026-03-02T00:00:00.000000Z",): (5, "0.00078"),
    }
    assert by_key(ask(store, "hour", since=START_NS - 2 * HOUR_NS)) == {
        ("2026-03-02T08:00:00.000000Z",): (1, "0.000195"),
        ("2026-03-02T10:00:00.000000Z",): (4, "0.000585"),
    }
    model = "gpt-4o-mini-2024-07-18"
    assert by_key(ask(store, "model", "service", since=since)) == {
        (model, "checkout"): (4, "0.00078"),
        (model, "search"): (1, "0.000195"),
        ("unheard-of", "checkout"): (1, None),
    }
    assert by_key(ask(store, "provider", since=since, service="search")) == {("openai",): (1, "0.000195")}


def test_what_has_no_value_is_shown_for_each_value_of_the_other_cut(store: Store) -> None:
    assert by_key(ask(store, "user", "model", since=START_NS - 2 * HOUR_NS)) == {
        ("ann", "gpt-4o-mini-2024-07-18"): (2, "0.00039"),
        ("ben", "gpt-4o-mini-2024-07-18"): (1, "0.000195"),
        (None, "gpt-4o-mini-2024-07-18"): (1, "0.000195"),
        (None, "unheard-of"): (1, None),
    }


def test_single_runs_answer_what_rollups_do_not_keep(store: Store) -> None:
    figures = ask(store, "tag", since=START_NS - 3 * DAY_NS)
    assert by_key(figures) == {("a",): (1, "0.000195"), ("b",): (1, "0.000195"), (None,): (5, "0.00078")}
    # A run with two tags counts under both, and once in the total.
    assert (figures["source"], figures["total"]["calls"], figures["total"]["cost_usd"]) == ("runs", 6, "0.000975")
    assert by_key(ask(store, "name", "service", since=START_NS - 3 * DAY_NS)) == {
        ("ChatOpenAI", "checkout"): (5, "0.00078"),
        ("ChatOpenAI", "search"): (1, "0.000195"),
    }
    assert by_key(ask(store, "metadata.colour")) == {(None,): (4, "0.000585")}


def test_the_root_of_a_trace_is_an_attribute(store: Store) -> None:
    assert by_key(ask(store, "root", since=START_NS - 2 * HOUR_NS)) == {
        ("answer",): (1, "0.000195"),
        (None,): (4, "0.000585"),
    }


def test_what_caching_saved_is_what_the_tokens_would_have_cost_more(store: Store) -> None:
    (row,) = [row for row in ask(store, "model")["rows"] if row["model"].startswith("gpt")]
    # 200 tokens of three calls at 0.075 instead of 0.15 dollars a million.
    assert (row["cached_share"], row["saved_usd"]) == (0.2, "0.000045")
    total = ask(store, "model")["total"]
    # Of the model without a price nobody knows.
    assert total["saved_usd"] is None
    # An hour is shown by the minute.
    assert len(total["series_usd"]) == 60
    assert [one for one in total["series_usd"] if one != "0"] == ["0.000585"]


def why(store: Store, now: Span, before: Span, prices: PriceTable) -> CostChanges:
    return build_changes(store, prices, now, before, None, UTC, START_NS + HOUR_NS)


def test_why_costs_changed_is_told_by_parts_that_add_up(store: Store) -> None:
    earlier = (START_NS - 2 * HOUR_NS, START_NS - HOUR_NS)
    found = why(store, (START_NS, START_NS + HOUR_NS), earlier, PriceTable.load())
    assert (found["cost_before_usd"], found["cost_usd"], found["difference_usd"]) == ("0.000195", "0.000585", "0.00039")
    nothing = dict.fromkeys(PARTS, "0")
    assert found["parts_usd"] == nothing | {"volume": "0.00039"}
    assert {row["model"]: (row["listed_calls_before"], row["listed_calls"]) for row in found["models"]} == {
        "gpt-4o-mini-2024-07-18": (1, 3),
        "unheard-of": (0, 0),
    }
    # Without a range to compare with, the one as long before it.
    found = why(store, (START_NS, START_NS + HOUR_NS), (None, None), PriceTable.load())
    assert found["before"] == {"from": "2026-03-02T09:00:00.000000Z", "to": "2026-03-02T10:00:00.000000Z"}
    assert found["parts_usd"] == nothing | {"mix": "0.000585"}
    # What these prices do not explain is none of theirs.
    dearer = PriceTable([], "other prices")
    assert why(store, (START_NS, START_NS + HOUR_NS), earlier, dearer)["parts_usd"] == nothing | {"other": "0.00039"}
    with pytest.raises(InputError, match="has no length"):
        why(store, (START_NS, START_NS), earlier, dearer)


def test_bills_and_searches_are_a_part_of_their_own(store_url: str) -> None:
    searched = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=200, web_searches=2)
    log = Log()
    log.append(model_call(START_NS, model="gpt-5-mini", usage=searched), "e1", 1)
    log.append(model_call(START_NS + 1, reported_cost_usd="0.25"), "e1", 2)
    with closing(open_store(store_url, "runtap.events", "UTC")) as store, Writer.of(store) as writer:
        partition = Partition(0, ("cost",), Tools.of(store, writer, PriceTable.load(), ConsumerSettings.load()))
        partition.load(0)
        partition.commit(partition.fold(log.since(0)))
        found = why(store, (START_NS, START_NS + HOUR_NS), (None, None), PriceTable.load())
    # Two searches of ten dollars a thousand, and the bill; the tokens at 0.25, 0.025 cached and 2 dollars a million.
    assert found["parts_usd"] == dict.fromkeys(PARTS, "0") | {"mix": "0.000405", "other": "0.27"}


def test_the_month_goes_on_as_its_whole_days_did(store: Store) -> None:
    month = ask(store, "model")["month"]
    assert (month["cost_usd"], month["forecast_usd"]) == ("0.00078", None)
    later = START_NS + 3 * DAY_NS
    month = ask(store, "model", since=later, end=later)["month"]
    # Three whole days since the first call: 0.00078, 0 and 0; the 5th and 26 days more are left.
    assert (month["forecast_usd"], month["least_usd"], month["most_usd"]) == ("0.0078", "0.00078", "0.02184")
    assert "whole days" in month["method"]


def test_the_command_prints_it(store: Store, store_url: str) -> None:
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url)
    span = ("--since", "2026-03-02", "--until", "2026-03-03")
    done = setting.run("costs", "--by", "team", *span)
    assert done.returncode == 0, done.stderr
    assert "Costs by team" in done.stdout
    assert "red" in done.stdout
    assert "1 without a price" in " ".join(done.stdout.split())
    done = setting.run("costs", "--service", "nobody", *span)
    assert (done.returncode, "expected any of checkout, search" in done.stderr) == (2, True)
    assert "There was no call" in setting.run("costs", "--model", "never-called", *span).stdout
    head, *lines = setting.run("costs", "--by", "user", "--csv", *span).stdout.splitlines()
    assert head.startswith("user,calls,priced_calls,unpriced_calls")
    assert [line.split(",")[:2] for line in lines] == [["ann", "2"], ["ben", "1"], ["", "2"]]
    assert json.loads(setting.run("costs", "--json", *span).stdout)["total"]["calls"] == 5
    done = setting.run("costs", "--why", *span)
    assert done.returncode == 0, done.stderr
    assert "$0.00 before, $0.000780 now: $0.000780" in done.stdout
    done = setting.run("costs", "--why", "--model", "gpt-5", *span)
    assert (done.returncode, "leave out --model" in done.stderr) == (2, True)
