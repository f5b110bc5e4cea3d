"""
A store of every version becomes one of this version, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import pytest
from sqlalchemy import inspect, text

from runtap_consumers.errors import StoreError
from runtap_consumers.store import tables
from runtap_consumers.store.engine import migrate_store, open_store


@pytest.mark.parametrize(("revision", "table"), [("0001", "repricings"), ("0002", "report_chains")])
def test_a_store_without_a_table_is_refused_and_gets_it_by_migration(revision: str, table: str, store_url: str) -> None:
    newer = ("repricings", "report_chains")
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        for name in newer[newer.index(table) :]:
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text("DROP INDEX runs_trace"))
        connection.execute(text("CREATE INDEX runs_trace ON runs (trace_id)"))
        connection.execute(text("CREATE INDEX runs_run ON runs (run_id)"))
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
    for name in newer:
        columns = {column["name"]: bool(column["nullable"]) for column in inspected.get_columns(name)}
        declared = tables.metadata.tables[name]
        assert columns == {column.name: bool(column.nullable) for column in declared.columns}
        assert inspected.get_pk_constraint(name)["constrained_columns"] == [
            column.name for column in declared.primary_key.columns
        ]
    store.close()
