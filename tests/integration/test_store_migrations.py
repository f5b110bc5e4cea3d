"""
A store of every version becomes one of this version, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import pytest
from sqlalchemy import inspect, text

from runtap_consumers.errors import StoreError
from runtap_consumers.store import tables
from runtap_consumers.store.engine import migrate_store, open_store


def test_a_store_without_repricings_is_refused_and_gets_them_by_migration(store_url: str) -> None:
    store = open_store(store_url, "runtap.events", "UTC")
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE repricings"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    store.close()
    with pytest.raises(StoreError, match="runtap store migrate"):
        open_store(store_url)
    migrate_store(store_url)
    store = open_store(store_url)
    columns = {
        column["name"]: bool(column["nullable"]) for column in inspect(store.engine).get_columns(tables.repricings.name)
    }
    store.close()
    assert columns == {column.name: bool(column.nullable) for column in tables.repricings.columns}
