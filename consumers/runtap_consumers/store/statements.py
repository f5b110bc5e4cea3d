"""The SQL of the write path, made once from the declared tables.

store.md's findings: SQLite takes text statements by `executemany`; PostgreSQL takes one `INSERT … SELECT unnest(…)` a
table, binary, so that no integer is sized by its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import LargeBinary, Table, Text

from runtap_consumers.projections.rollups import Merge
from runtap_consumers.store.dialect import Dialect


def upsert_statement(table: Table, dialect: Dialect) -> str:
    """Adds rows to a table; two of one key become one by each column's rule (its `info["merge"]`, else replaced)."""
    return f"{_insert(table, dialect)} {_on_conflict(table, dialect)}"


def pass_on_statement(fine: Table, coarse: Table, chosen: str, dialect: Dialect) -> str:
    """Adds rows of a table, `chosen` by a condition, to those of a coarser grain. Parameters: the coarse bucket, and
    those of the condition, which chooses of one fine bucket.
    """
    columns = ", ".join(column.name for column in coarse.columns if column.name != "bucket_ns")
    return (
        f"INSERT INTO {coarse.name} (bucket_ns, {columns}) SELECT CAST(? AS BIGINT), {columns} FROM {fine.name} "
        f"WHERE {chosen} {_on_conflict(coarse, dialect)}"
    )


def _on_conflict(table: Table, dialect: Dialect) -> str:
    merges = {
        Merge.ADD: "{0} + {1}",
        Merge.MIN: dialect.least,
        Merge.MAX: dialect.greatest,
        Merge.KEEP: "coalesce({0}, {1})",
        Merge.REPLACE: "{1}",
        Merge.LATER: f"CASE WHEN excluded.number >= {table.name}.number THEN {{1}} ELSE {{0}} END",
        Merge.OR: "{0} | {1}",
    }
    changes = ", ".join(
        f"{column.name} = "
        + merges[column.info.get("merge", Merge.REPLACE)].format(
            f"{table.name}.{column.name}", f"excluded.{column.name}"
        )
        for column in table.columns
        if not column.primary_key
    )
    keys = ", ".join(column.name for column in table.primary_key.columns)
    return f"ON CONFLICT ({keys}) {f'DO UPDATE SET {changes}' if changes else 'DO NOTHING'}"


def insert_new_statement(table: Table, dialect: Dialect) -> str:
    """Adds the rows whose key is not there yet."""
    return f"{_insert(table, dialect)} ON CONFLICT DO NOTHING"


def update_by_row_id_statement(table: Table, columns: Sequence[str], dialect: Dialect) -> str:
    """Sets columns of rows; rows of parameters are the columns and the database's id of the row."""
    return dialect.update_by_row_id(table.name, {name: _postgres_type(table.c[name].type) for name in columns})


@lru_cache(maxsize=1_024)
def insert_statement(table: Table, first: tuple[int, ...], names: tuple[str, ...]) -> str:
    """Adds rows, on SQLite, with these columns.

    Args:
        table: where to.
        first: the values of the table's first columns, the same in all rows.
        names: of the other columns that rows have.
    """
    columns = [column.name for column in table.columns][: len(first)]
    values = ", ".join([*map(str, first), *"?" * len(names)])
    return f"INSERT INTO {table.name} ({', '.join([*columns, *names])}) VALUES ({values})"


def copy_statement(table: Table) -> str:
    """Adds rows, on PostgreSQL. It must stand before the move: a stopped COPY holds what it has locked."""
    return f"COPY {table.name} ({', '.join(column.name for column in table.columns)}) FROM STDIN (FORMAT BINARY)"


def column_types(table: Table) -> list[str]:
    """PostgreSQL's types of the columns."""
    return [_postgres_type(column.type) for column in table.columns]


def _insert(table: Table, dialect: Dialect) -> str:
    columns = ", ".join(column.name for column in table.columns)
    return f"INSERT INTO {table.name} ({columns}) {dialect.source(column_types(table))}"


def _postgres_type(kind: object) -> str:
    if isinstance(kind, LargeBinary):
        return "bytea"
    return "text" if isinstance(kind, Text) else "bigint"
