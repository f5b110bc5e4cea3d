"""A store of every version becomes one of this version, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Connection, inspect, text

from cost_sql import COST
from runtap_consumers.alerts.statements import read_history, read_marks, read_states
from runtap_consumers.alerts.windows import Mark
from runtap_consumers.errors import StoreError
from runtap_consumers.projections.rollups import COST_MEASURES, GRAINS, RUN_DURATIONS
from runtap_consumers.store import tables
from runtap_consumers.store.engine import migrate_store, open_store
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS
from runtap_schemas import decode_alert
from samples import START_NS

# What each revision brought: tables, and columns of tables that were there.
_TABLES = {
    "0002": ("repricings",),
    "0005": ("cost_by_attribute_hour", "cost_by_attribute_day"),
    "0006": (
        *("emitter_reports", "emitter_counts", "abandoned_lanes", "report_minutes", "strays", "lane_marks"),
        "forgotten_emitters",
    ),
    "0007": ("cost_keys", "cost_by_attribute_hour", "cost_by_attribute_day", "session_costs", "sessions"),
    "0011": ("run_durations",),
    "0014": ("touched_minutes", "alert_lease", "alert_marks", "alert_states", "alert_outbox"),
    "0015": ("run_scores", *(f"scores_{grain}" for grain in GRAINS)),
    "0016": ("dataset_versions", "dataset_examples", "experiments", "experiment_results"),
}
# Of run_durations.
DURATION_COLUMNS = [name for one in RUN_DURATIONS.measures for name in (one.whole, one.name) if name]
_COLUMNS = {
    "error_groups": ("status_code", "code", "raised_at"),
    "recent_errors": ("category", "status_code", "code", "raised_at"),
    "runs": ("error_status_code", "error_code", "error_raised_at"),
    "positions": (),
    "dead_letters": (),
    "log_incidents": (),
    **dict.fromkeys((f"{name}_{grain}" for name in ("cost", "performance") for grain in GRAINS), ()),
}
# The table of revisions before 0005.
_OLD_ATTRIBUTES = """
CREATE TABLE cost_by_attribute (attribute TEXT, value TEXT, bucket_ns BIGINT, provider TEXT, model TEXT, price_set TEXT,
price_class TEXT, partition BIGINT, generation BIGINT, {}, PRIMARY KEY (attribute, value, bucket_ns, provider, model,
price_set, price_class, partition, generation))
""".format(", ".join(f"{measure.name} BIGINT" for measure in COST_MEASURES))


# The tables of revisions before 0007.
_COUNTS = ", ".join(f"{measure.name} BIGINT" for measure in COST_MEASURES)
_OLD_SESSIONS = f"""
CREATE TABLE sessions (session_id TEXT, partition BIGINT, generation BIGINT, first_at_ns BIGINT, last_at_ns BIGINT,
starts BIGINT, ends BIGINT, traces BIGINT, llm_calls BIGINT, tool_calls BIGINT, errors BIGINT, input_tokens BIGINT,
output_tokens BIGINT, service TEXT, last_log_time_ns BIGINT, PRIMARY KEY (session_id, partition, generation));
CREATE TABLE session_users (session_id TEXT, user_id TEXT, partition BIGINT, generation BIGINT,
PRIMARY KEY (session_id, user_id, partition, generation));
CREATE TABLE session_costs (session_id TEXT, provider TEXT, model TEXT, price_set TEXT, price_class TEXT,
partition BIGINT, generation BIGINT, {_COUNTS}, PRIMARY KEY (session_id, provider, model, price_set, price_class,
partition, generation))
"""
_OLD_GRAIN = """
CREATE TABLE cost_by_attribute_{} (bucket_ns BIGINT, attribute TEXT, value TEXT, provider TEXT, model TEXT,
service TEXT, price_set TEXT, price_class TEXT, partition BIGINT, generation BIGINT, {}, PRIMARY KEY (bucket_ns,
attribute, value, provider, model, service, price_set, price_class, partition, generation))
"""


_OLD_DURATIONS = f"""
CREATE TABLE run_durations (service TEXT, environment TEXT, run_type TEXT, model TEXT, partition BIGINT,
generation BIGINT, {", ".join(f"{name} BIGINT" for name in DURATION_COLUMNS)},
PRIMARY KEY (service, environment, run_type, model, partition, generation))
"""


# The tables of revisions before 0014.
_OLD_ALERTS = """
CREATE TABLE touched_minutes (bucket_ns BIGINT, partition BIGINT, generation BIGINT, touches BIGINT,
PRIMARY KEY (bucket_ns, partition, generation));
CREATE TABLE alert_lease (id INTEGER PRIMARY KEY, holder TEXT, expires_at_ns BIGINT, learning_until_ns BIGINT,
evaluated_to_ns BIGINT);
CREATE TABLE alert_states (rule TEXT, service TEXT, environment TEXT, state TEXT, transition BIGINT,
window_to_ns BIGINT, PRIMARY KEY (rule, service, environment));
CREATE TABLE alert_known_groups (service TEXT, fingerprint TEXT, known_at_ns BIGINT,
PRIMARY KEY (service, fingerprint));
CREATE TABLE alert_budgets (service TEXT, hour_ns BIGINT, sent BIGINT, suppressed BIGINT, summarised BIGINT,
PRIMARY KEY (service, hour_ns));
CREATE TABLE alert_outbox (id TEXT PRIMARY KEY, at_ns BIGINT, rule TEXT, state TEXT, service TEXT, summary TEXT,
payload {}, published BIGINT)
"""


def _take_back_0016(connection: Connection) -> None:
    for name in _TABLES["0016"]:
        connection.execute(text(f"DROP TABLE {name}"))


def _take_back_0015(connection: Connection) -> None:
    _take_back_0016(connection)
    for name in _TABLES["0015"]:
        connection.execute(text(f"DROP TABLE {name}"))


def _take_back_0014(connection: Connection) -> None:
    _take_back_0015(connection)
    for name in _TABLES["0014"]:
        connection.execute(text(f"DROP TABLE {name}"))
    binary = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
    for statement in _OLD_ALERTS.format(binary).split(";"):
        connection.execute(text(statement))
    for grain in GRAINS:
        for name in ("cut_off", "refused"):
            connection.execute(text(f"ALTER TABLE performance_{grain} DROP COLUMN {name}"))


def _take_back_0013(connection: Connection) -> None:
    _take_back_0014(connection)
    connection.execute(text("DROP TABLE run_durations"))
    connection.execute(text(_OLD_DURATIONS))


# The table of revisions before 0012.
_OLD_INCIDENTS = """
CREATE TABLE log_incidents (projection TEXT, partition BIGINT, incarnation BIGINT, first_offset BIGINT, kind TEXT,
last_offset BIGINT, at_ns BIGINT, PRIMARY KEY (projection, partition, incarnation, first_offset))
"""


def _take_back_0012(connection: Connection) -> None:
    _take_back_0013(connection)
    connection.execute(text("DROP TABLE log_incidents"))
    connection.execute(text(_OLD_INCIDENTS))


def _take_back_0011(connection: Connection) -> None:
    _take_back_0012(connection)
    connection.execute(text("DROP TABLE run_durations"))


def _take_back_0010(connection: Connection) -> None:
    _take_back_0011(connection)
    for name in ("root_name", "model_source"):
        connection.execute(text(f"ALTER TABLE runs DROP COLUMN {name}"))
    connection.execute(text("DROP INDEX runs_run"))
    connection.execute(text("DROP TABLE contents"))


def _take_back_0009(connection: Connection) -> None:
    _take_back_0010(connection)
    for name in ("forgotten_at_ns", "is_struck"):
        connection.execute(text(f"ALTER TABLE forgotten_emitters DROP COLUMN {name}"))
    connection.execute(text("DROP TABLE model_names"))


def _take_back_0008(connection: Connection) -> None:
    _take_back_0009(connection)
    for table in tables.metadata.sorted_tables:
        is_there = "rollup" in table.info and table.name not in (*_TABLES["0011"], *_TABLES["0015"])
        for measure in table.info["rollup"].measures if is_there else ():
            if measure.whole:
                connection.execute(text(f"ALTER TABLE {table.name} DROP COLUMN {measure.whole}"))


def _take_back_0007(connection: Connection) -> None:
    _take_back_0008(connection)
    for name in _TABLES["0007"]:
        connection.execute(text(f"DROP TABLE {name}"))
    for statement in _OLD_SESSIONS.split(";"):
        connection.execute(text(statement))
    for grain in ("hour", "day"):
        connection.execute(text(_OLD_GRAIN.format(grain, _COUNTS)))


def _take_back_0006(connection: Connection) -> None:
    _take_back_0007(connection)
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


@pytest.mark.parametrize("revision", [f"{number:04}" for number in range(1, 16)])
def test_a_store_of_an_older_version_is_refused_and_becomes_one_of_this_by_migration(
    revision: str, store_url: str
) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        later = {
            "0015": _take_back_0016,
            "0014": _take_back_0015,
            "0013": _take_back_0014,
            "0012": _take_back_0013,
            "0011": _take_back_0012,
            "0010": _take_back_0011,
            "0009": _take_back_0010,
            "0008": _take_back_0009,
            "0007": _take_back_0008,
            "0006": _take_back_0007,
            "0005": _take_back_0006,
        }
        later.get(revision, _take_back_0005)(connection)
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
                    text(
                        f"SELECT {columns} FROM cost_by_attribute_{grain} JOIN cost_keys ON cost_keys.id = cost_key "
                        "ORDER BY 1, 2, 3"
                    )
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
    ]


def test_costs_get_numbers_hours_leave_their_days_and_sessions_get_their_users(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    zeros = ", 0" * (len(COST_MEASURES) - 2)
    day = START_NS - START_NS % DAY_NS
    rows = [
        ("cost_by_attribute_day", (day, "ann", "chat"), 7),
        ("cost_by_attribute_day", (day, "ben", "chat"), 2),
        ("cost_by_attribute_hour", (START_NS, "ann", "chat"), 5),
        ("cost_by_attribute_hour", (day, "ben", "chat"), 2),
    ]
    with store.engine.begin() as connection:
        _take_back_0007(connection)
        for table, (bucket, value, service), calls in rows:
            connection.execute(
                text(
                    f"INSERT INTO {table} VALUES ({bucket}, 'user', '{value}', 'openai', 'm', '{service}', 'p', "
                    f"'standard', 0, 0, {calls}{zeros}, {calls * 10})"
                )
            )
        connection.execute(
            text(f"INSERT INTO session_costs VALUES ('s', 'openai', 'm', 'p', 'standard', 0, 0, 3{zeros}, 30)")
        )
        for session in ("s", "nobody's"):
            name = session.replace("'", "''")
            connection.execute(
                text(f"INSERT INTO sessions VALUES ('{name}', 0, 0, 5, 9, 1, 0, 1, 3, 0, 0, 40, 20, 'chat', 9)")
            )
        connection.execute(text("INSERT INTO session_users VALUES ('s', 'ann', 0, 0), ('s', 'ben', 0, 0)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0006'"))
    store.close()
    migrate_store(store_url)
    store = open_store(store_url)

    def read(statement: str) -> list[tuple[object, ...]]:
        with store.read() as connection:
            return [tuple(row) for row in connection.execute(text(statement)).all()]

    join = "JOIN cost_keys ON cost_keys.id = cost_key ORDER BY 1, 2"
    assert read(f"SELECT bucket_ns, value, service, calls FROM cost_by_attribute_hour {join}") == [
        (day, "ben", "chat", 2),
        (START_NS, "ann", "chat", 5),
    ]
    assert read(f"SELECT value, calls, {COST}, model FROM cost_by_attribute_day {join}") == [("ann", 2, 20, "m")]
    assert read(f"SELECT session_id, calls, provider, price_set FROM session_costs {join}") == [("s", 3, "openai", "p")]
    assert read("SELECT session_id, user_id, traces, last_at_ns, service FROM sessions ORDER BY 1, 2") == [
        ("nobody's", "", 1, 9, "chat"),
        ("s", "ann", 1, 9, "chat"),
        ("s", "ben", 0, 9, "chat"),
    ]
    store.close()


def test_sums_are_divided_between_two_columns(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        _take_back_0008(connection)
        connection.execute(
            text(
                "INSERT INTO cost_day (bucket_ns, provider, model, service, environment, price_set, price_class, "
                "partition, generation, calls, cost_picodollars) "
                "VALUES (0, 'p', 'm', 's', 'e', 'v', 'standard', 0, 0, 3, 9000000000000000007)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO performance_day (bucket_ns, service, environment, run_type, name, model, partition, "
                "generation, count, total_ns, output_ns) VALUES (0, 's', 'e', 'llm', 'n', 'm', 0, 0, 3, 7000000001, 5)"
            )
        )
        connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))
    store.close()
    migrate_store(store_url)
    store = open_store(store_url)
    with store.read() as connection:
        cost = connection.execute(text("SELECT calls, cost_microdollars, cost_picodollars FROM cost_day")).all()
        columns = "count, total_seconds, total_ns, output_seconds, output_ns"
        durations = connection.execute(text(f"SELECT {columns} FROM performance_day")).all()
    store.close()
    assert [tuple(row) for row in cost] == [(3, 9 * 10**12, 7)]
    assert [tuple(row) for row in durations] == [(3, 7, 1, 0, 5)]


def test_incidents_are_kept_and_two_kinds_may_be_at_one_offset(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    rows = [("cost", 0, 1, 10, "recreated", 9, 5), ("runs", 0, 0, 3, "retention", 6, 4)]
    with store.engine.begin() as connection:
        _take_back_0012(connection)
        for row in rows:
            connection.execute(text(f"INSERT INTO log_incidents VALUES {row}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0011'"))
    store.close()
    migrate_store(store_url)
    store = open_store(store_url)
    gone = ("cost", 0, 1, 10, "gone", 9, 7)
    with store.engine.begin() as connection:
        connection.execute(text(f"INSERT INTO log_incidents VALUES {gone}"))
    with store.read() as connection:
        found = connection.execute(text("SELECT * FROM log_incidents ORDER BY projection, kind")).all()
    store.close()
    assert [tuple(row) for row in found] == [gone, *rows]


def test_durations_of_before_are_those_until_the_end(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    counts = range(1, len(DURATION_COLUMNS) + 1)
    with store.engine.begin() as connection:
        _take_back_0013(connection)
        columns, values = ", ".join(DURATION_COLUMNS), ", ".join(map(str, counts))
        connection.execute(
            text(
                f"INSERT INTO run_durations (service, environment, run_type, model, partition, generation, {columns}) "
                f"VALUES ('s', 'e', 'llm', 'm', 0, 0, {values})"
            )
        )
        connection.execute(text("UPDATE alembic_version SET version_num = '0011'"))
    store.close()
    migrate_store(store_url)
    with open_store(store_url) as store, store.read() as connection:
        found = connection.execute(text(f"SELECT until, model, {columns} FROM run_durations")).all()
    assert [tuple(row) for row in found] == [("end", "m", *counts)]


def test_what_fires_is_known_and_was_said_goes_on_under_rules_of_a_file(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    said = {
        "version": 1,
        "id": "error_rate/shop/prod/3",
        "rule": "error_rate",
        "state": "firing",
        "at_ns": START_NS,
        "service": "shop",
        "environment": "prod",
        "summary": "it burns",
        "rate": 0.25,
        "count": 5,
        "window_from_ns": START_NS - 300 * 10**9,
        "window_to_ns": START_NS,
        "sample_run_id": "run-1",
    }
    with store.engine.begin() as connection:
        _take_back_0014(connection)
        for statement in (
            f"INSERT INTO alert_lease VALUES (1, 'a', 0, 7, {START_NS})",
            f"INSERT INTO alert_states VALUES ('error_rate', 'shop', 'prod', 'firing', 3, {START_NS})",
            "INSERT INTO alert_known_groups VALUES ('shop', 'f1', 5)",
            f"INSERT INTO touched_minutes VALUES ({START_NS}, 0, 0, 4)",
        ):
            connection.execute(text(statement))
        connection.execute(
            text(
                f"INSERT INTO alert_outbox VALUES ('error_rate/shop/prod/3', {START_NS}, 'error_rate', 'firing', "
                "'shop', 'it burns', :payload, 0)"
            ),
            {"payload": json.dumps(said).encode()},
        )
        connection.execute(text("UPDATE alembic_version SET version_num = '0013'"))
    store.close()
    migrate_store(store_url)
    store = open_store(store_url)
    with open_snapshot(store) as snapshot:
        states, marks = read_states(snapshot), read_marks(snapshot)
        (row,) = read_history(snapshot, 0, 2 * START_NS)
    store.close()
    firing = states["error_rate"]["shop", "prod"]
    assert (firing.level, firing.transition, firing.incident) == (1, 3, "error_rate/shop/prod/3")
    assert states["new_error_group"]["shop", "f1"].level == 0
    assert marks == {"errors": Mark(START_NS, START_NS)}
    alert = decode_alert(row.payload)
    assert (alert.status, alert.value, alert.group) == ("firing", "0.25", {"service": "shop", "environment": "prod"})
    assert (row.published, alert.sample_run_ids, alert.summary) == (0, ["run-1"], "it burns")


def test_a_store_is_made_by_migration_where_that_was_asked_for(store_url: str) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        migrate_store(store_url)
    made = migrate_store(store_url, "shop.events", "Europe/Berlin")
    assert migrate_store(store_url, "other.events", "UTC") == made
    with open_store(store_url) as store:
        assert (store.events_topic, store.zone.key) == ("shop.events", "Europe/Berlin")
