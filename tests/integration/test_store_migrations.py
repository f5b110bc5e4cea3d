"""A store of every version becomes one of this version, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, inspect, text

from runtap_consumers.errors import StoreError
from runtap_consumers.projections.rollups import COST_MEASURES
from runtap_consumers.store import tables
from runtap_consumers.store.engine import migrate_store, open_store
from runtap_consumers.units import DAY_NS, HOUR_NS
from samples import START_NS

# What each revision brought: tables, and columns of tables that were there.
_TABLES = {
    "0002": ("repricings",),
    "0005": ("cost_by_attribute_hour", "cost_by_attribute_day"),
    "0006": (
        *("emitter_reports", "emitter_counts", "abandoned_lanes", "report_minutes", "strays", "lane_marks"),
        "forgotten_emitters",
    ),
}
_COLUMNS = {
    "error_groups": ("status_code", "code", "raised_at"),
    "recent_errors": ("category", "status_code", "code", "raised_at"),
    "runs": ("error_status_code", "error_code", "error_raised_at"),
    "positions": (),
    "dead_letters": (),
}
# The table of revisions before 0005.
_OLD_ATTRIBUTES = """
CREATE TABLE cost_by_attribute (attribute TEXT, value TEXT, bucket_ns BIGINT, provider TEXT, model TEXT, price_set TEXT,
price_class TEXT, partition BIGINT, generation BIGINT, {}, PRIMARY KEY (attribute, value, bucket_ns, provider, model,
price_set, price_class, partition, generation))
""".format(", ".join(f"{measure.name} BIGINT" for measure in COST_MEASURES))


def _take_back_0006(connection: Connection) -> None:
    for name in _TABLES["0006"]:
        connection.execute(text(f"DROP TABLE {name}"))
    for name in ("emitter_reports", "report_chains", "lane_marks"):
        connection.execute(text(f"CREATE TABLE {name} (emitter TEXT)"))
    connection.execute(text("ALTER TABLE positions DROP COLUMN caught_up_at_ns"))
    connection.execute(text("ALTER TABLE dead_letters DROP COLUMN events"))


def _take_back_0005(connection: Connection) -> None:
    _take_back_0006(connection)
    for name in _TABLES["0005"]:
        connection.execute(text(f"DROP TABLE {name}"))
    connection.execute(text(_OLD_ATTRIBUTES))
    for name in ("kept_calls", "kept_session_calls", "kept_attribute_calls"):
        connection.execute(text(f"ALTER TABLE repricings DROP COLUMN {name}"))


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004", "0005"])
def test_a_store_of_an_older_version_is_refused_and_becomes_one_of_this_by_migration(
    revision: str, store_url: str
) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        if revision < "0005":
            _take_back_0005(connection)
        else:
            _take_back_0006(connection)
        for since, names in _TABLES.items():
            if revision < since < "0005":
                for name in names:
                    connection.execute(text(f"DROP TABLE {name}"))
        if revision < "0003":
            connection.execute(text("DROP TABLE report_chains"))
            connection.execute(text("DROP INDEX runs_trace"))
            connection.execute(text("CREATE INDEX runs_trace ON runs (trace_id)"))
            connection.execute(text("CREATE INDEX runs_run ON runs (run_id)"))
        for table, columns in _COLUMNS.items():
            for column in columns if revision < "0004" else ():
                connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    store.close()
    with pytest.raises(StoreError, match="runtap store migrate"):
        open_store(store_url)
    migrate_store(store_url)
    store = open_store(store_url)
    inspected = inspect(store.engine)
    assert {index["name"]: index["column_names"] for index in inspected.get_indexes("runs")} == {
        index.name: [column.name for column in index.columns] for index in tables.runs.indexes
    }
    assert "cost_by_attribute" not in inspected.get_table_names()
    for name in (*(name for names in _TABLES.values() for name in names), *_COLUMNS):
        found = {column["name"]: (str(column["type"]), column["nullable"]) for column in inspected.get_columns(name)}
        declared = tables.metadata.tables[name]
        assert found == {
            column.name: (str(column.type.compile(store.engine.dialect)), column.nullable)
            for column in declared.columns
        }
        assert inspected.get_pk_constraint(name)["constrained_columns"] == [
            column.name for column in declared.primary_key.columns
        ]
    store.close()


def test_costs_by_attribute_move_into_hours_and_into_days_of_the_store_s_zone(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "Europe/Berlin")
    # Midnight in Berlin.
    midnight = START_NS - 11 * HOUR_NS + DAY_NS
    zeros = ", 0" * (len(COST_MEASURES) - 2)
    with store.engine.begin() as connection:
        _take_back_0005(connection)
        for number, (hour, value, generation) in enumerate(
            [
                (midnight - 3 * DAY_NS, "ann", 0),
                (midnight - HOUR_NS, "ann", 0),
                (midnight, "ann", 0),
                (midnight + 5 * HOUR_NS, "ann", 0),
                (midnight + 5 * HOUR_NS, "ben", 0),
                (midnight, "ann", 1),
            ]
        ):
            connection.execute(
                text(
                    "INSERT INTO cost_by_attribute VALUES "
                    f"('user', '{value}', {hour}, 'openai', 'm', 'p', 'standard', 0, {generation}, "
                    f"1{zeros}, {10**number})"
                )
            )
        connection.execute(
            text(f"INSERT INTO positions VALUES ('cost', 0, 9, 1, 1, 0, 0, '', {midnight + 6 * HOUR_NS})")
        )
        connection.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    store.close()
    migrate_store(store_url)
    store = open_store(store_url)
    columns = "bucket_ns, value, generation, calls, cost_picodollars, provider, service, price_set"
    with store.read() as connection:
        hours, days = (
            [
                tuple(row)
                for row in connection.execute(
                    text(f"SELECT {columns} FROM cost_by_attribute_{grain} ORDER BY 1, 2, 3")
                ).all()
            ]
            for grain in ("hour", "day")
        )
    store.close()
    same = ("openai", "", "p")
    assert hours == [
        (midnight - HOUR_NS, "ann", 0, 1, 10, *same),
        (midnight, "ann", 0, 1, 100, *same),
        (midnight, "ann", 1, 1, 100_000, *same),
        (midnight + 5 * HOUR_NS, "ann", 0, 1, 1_000, *same),
        (midnight + 5 * HOUR_NS, "ben", 0, 1, 10_000, *same),
    ]
    assert days == [
        (midnight - 3 * DAY_NS, "ann", 0, 1, 1, *same),
        (midnight - DAY_NS, "ann", 0, 1, 10, *same),
        (midnight, "ann", 0, 2, 1_100, *same),
        (midnight, "ann", 1, 1, 100_000, *same),
        (midnight, "ben", 0, 1, 10_000, *same),
    ]
