"""Costs by user and by metadata key, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from partition_setting import pass_hours_on, rows
from runtap_consumers.errors import InputError
from runtap_consumers.figures.attribution import build_attribution
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import retention
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS
from runtap_consumers.worker.partition import Partition, Tools
from samples import START_NS, Log, model_call
from worker_process import WorkerSetting

UTC = ZoneInfo("UTC")
CALLS: list[dict[str, Any]] = [
    {"metadata": {"team": "red"}, "user_id": "ann"},
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


def attributed(
    store: Store, attribute: str, since: int = START_NS, service: str | None = None
) -> list[tuple[Any, ...]]:
    end = START_NS + HOUR_NS
    figures = build_attribution(store, attribute, ("feature",), since, end, service, UTC, end)
    names = ("value", "calls", "unpriced_calls", "input_tokens", "cost_usd")
    return [
        tuple(figures[name] for name in names[1:]),
        *(tuple(row[name] for name in names) for row in figures["values"]),
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
    figures = build_attribution(store, "team", (), START_NS - 900 * DAY_NS, START_NS, None, UTC, START_NS)
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
    with pytest.raises(InputError, match="feature, team, user"):
        attributed(store, "colour")


def test_the_command_prints_it(store: Store, store_url: str) -> None:
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url)
    done = setting.run("report", "--by", "team", "--since", "2026-03-02", "--until", "2026-03-03")
    assert done.returncode == 0, done.stderr
    assert "Cost by team" in done.stdout
    assert "red" in done.stdout
    done = setting.run(
        "report", "--by", "team", "--service", "nobody", "--since", "2026-03-02", "--until", "2026-03-03"
    )
    assert "there was no call" in done.stdout
