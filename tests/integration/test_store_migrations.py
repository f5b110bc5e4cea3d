"""A store of every version becomes one of this version, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import inspect, text

from runtap_consumers.errors import StoreError
from runtap_consumers.store import tables
from runtap_consumers.store.engine import migrate_store, open_store

# What each revision brought: tables, and columns of tables that were there.
_TABLES = {"0002": "repricings", "0003": "report_chains"}
_COLUMNS = {
    "error_groups": ("status_code", "code", "raised_at"),
    "recent_errors": ("category", "status_code", "code", "raised_at"),
    "runs": ("error_status_code", "error_code", "error_raised_at"),
}


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_a_store_of_an_older_version_is_refused_and_becomes_one_of_this_by_migration(
    revision: str, store_url: str
) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        for since, name in _TABLES.items():
            if since > revision:
                connection.execute(text(f"DROP TABLE {name}"))
        if revision < "0003":
            connection.execute(text("DROP INDEX runs_trace"))
            connection.execute(text("CREATE INDEX runs_trace ON runs (trace_id)"))
            connection.execute(text("CREATE INDEX runs_run ON runs (run_id)"))
        for table, columns in _COLUMNS.items():
            for column in columns:
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
    for name in (*_TABLES.values(), *_COLUMNS):
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
