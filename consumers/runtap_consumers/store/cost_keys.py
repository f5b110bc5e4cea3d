"""The numbers of cost keys: one table a store, so that every worker uses the same."""

from __future__ import annotations

from collections.abc import Mapping

from runtap_consumers.projections.batch import CostKey
from runtap_consumers.projections.rollups import COST_KEY
from runtap_consumers.store.writer import Writer

_COLUMNS = ", ".join(COST_KEY)
_INSERT = f"INSERT INTO cost_keys ({_COLUMNS}) VALUES ({', '.join('?' * len(COST_KEY))}) ON CONFLICT DO NOTHING"
_SELECT = f"SELECT id FROM cost_keys WHERE {' AND '.join(f'{name} = ?' for name in COST_KEY)}"


class CostKeys:
    """Numbers the keys that a process meets, and remembers them."""

    def __init__(self, writer: Writer, *, is_inside: bool = False) -> None:
        """`is_inside`: the writer is in a transaction, with which all that is remembered must be forgotten."""
        self._writer, self._is_inside = writer, is_inside
        self._numbers: dict[CostKey, int] = {}

    def numbers(self, keys: set[CostKey]) -> Mapping[CostKey, int]:
        """The numbers of these keys, and of those that were met before; new ones in a transaction of their own.

        Raises:
            StoreError: the store did not take it.
        """
        unknown = keys - self._numbers.keys()
        if self._is_inside:
            self._add(unknown)
        elif unknown:
            with self._writer.transaction():
                self._add(unknown)
        return self._numbers

    def _add(self, unknown: set[CostKey]) -> None:
        # In key order: two workers that wait for each other's new keys would deadlock.
        found = {}
        for key in sorted(unknown):
            self._writer.execute(_INSERT, key)
            ((found[key],),) = self._writer.query(_SELECT, key)
        self._numbers |= found
