"""The SQL of the write path, made once from the declared tables.

store.md's findings: SQLite takes text statements by `executemany`; PostgreSQL takes one `INSERT … SELECT unnest(…)` a
table, binary, so that no integer is sized by its value.
"""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import LargeBinary, Table, Text

from runtap_consumers.projections.rollups import Merge

_SQLITE_MERGES = {
    Merge.ADD: "{table}.{column} + excluded.{column}",
    # SQLite's two-argument min and max are null where either is.
    Merge.MIN: "coalesce(min({table}.{column}, excluded.{column}), {table}.{column}, excluded.{column})",
    Merge.MAX: "coalesce(max({table}.{column}, excluded.{column}), {table}.{column}, excluded.{column})",
    Merge.KEEP: "coalesce({table}.{column}, excluded.{column})",
    Merge.REPLACE: "excluded.{column}",
    Merge.LATER: ("CASE WHEN excluded.number >= {table}.number THEN excluded.{column} ELSE {table}.{column} END"),
    Merge.OR: "{table}.{column} | excluded.{column}",
}
_POSTGRES_MERGES = {
    **_SQLITE_MERGES,
    Merge.MIN: "least({table}.{column}, excluded.{column})",
    Merge.MAX: "greatest({table}.{column}, excluded.{column})",
}


def upsert_statement(table: Table, dialect: str) -> str:
    """Adds rows to a table; two rows of one key become one by each column's rule (its `info["merge"]`, else replaced).

    Args:
        table: keys first, in the order of its columns.
        dialect: `sqlite`, for one row a parameter set, or `postgresql`, for one list a column.
    """
    columns = [column.name for column in table.columns]
    keys = ", ".join(column.name for column in table.primary_key.columns)
    merges = _SQLITE_MERGES if dialect == "sqlite" else _POSTGRES_MERGES
    changes = ", ".join(
        f"{column.name} = "
        + merges[column.info.get("merge", Merge.REPLACE)].format(table=table.name, column=column.name)
        for column in table.columns
        if not column.primary_key
    )
    action = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
    return f"INSERT INTO {table.name} ({', '.join(columns)}) {_source(table, dialect)} ON CONFLICT ({keys}) {action}"


def insert_new_statement(table: Table, dialect: str) -> str:
    """Adds the rows whose key is not there yet."""
    columns = ", ".join(column.name for column in table.columns)
    return f"INSERT INTO {table.name} ({columns}) {_source(table, dialect)} ON CONFLICT DO NOTHING"


@lru_cache(maxsize=1_024)
def insert_statement(table: Table, first: tuple[int, ...]) -> str:
    """Adds rows, on SQLite.

    Args:
        table: which.
        first: the values of its first columns, the same in all rows.
    """
    columns = ", ".join(column.name for column in table.columns)
    values = ", ".join([*map(str, first), *"?" * (len(table.columns) - len(first))])
    return f"INSERT INTO {table.name} ({columns}) VALUES ({values})"


def copy_statement(table: Table) -> str:
    """Adds rows, on PostgreSQL. It must stand before the move: a stopped COPY holds what it has locked."""
    return f"COPY {table.name} ({', '.join(column.name for column in table.columns)}) FROM STDIN (FORMAT BINARY)"


def column_types(table: Table) -> list[str]:
    """PostgreSQL's types of the columns."""
    return [_postgres_type(column.type) for column in table.columns]


def _source(table: Table, dialect: str) -> str:
    if dialect == "sqlite":
        return f"VALUES ({', '.join('?' * len(table.columns))})"
    lists = ", ".join(f"%b::{_postgres_type(column.type)}[]" for column in table.columns)
    return f"SELECT * FROM unnest({lists})"


def _postgres_type(kind: object) -> str:
    if isinstance(kind, LargeBinary):
        return "bytea"
    return "text" if isinstance(kind, Text) else "bigint"
