"""Numbers of cost keys: one for each key, whoever asks, and none that a transaction took back."""

from __future__ import annotations

from contextlib import suppress

from partition_setting import rows
from runtap_consumers.projections.batch import CostKey
from runtap_consumers.store.cost_keys import CostKeys
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer

ONE: CostKey = ("openai", "gpt", "chat", "prod", "p1", "standard")
OTHER: CostKey = ("openai", "gpt", "chat", "prod", "p2", "standard")


def test_all_writers_use_the_same_number_for_a_key_and_others_for_other_keys(store: Store) -> None:
    with Writer.of(store) as writer, Writer.of(store) as second:
        first = CostKeys(writer)
        assert first.numbers({ONE})[ONE] == CostKeys(second).numbers({OTHER, ONE})[ONE]
        assert first.numbers({OTHER})[OTHER] == CostKeys(second).numbers({OTHER})[OTHER] != first.numbers({ONE})[ONE]
    assert rows(store, "SELECT count(*) FROM cost_keys") == [(2,)]


def test_a_number_that_was_rolled_back_stands_for_nothing(store: Store) -> None:
    with Writer.of(store) as writer:
        with suppress(ZeroDivisionError), writer.transaction():
            CostKeys(writer, is_inside=True).numbers({ONE})
            raise ZeroDivisionError
        assert rows(store, "SELECT * FROM cost_keys") == []
        keys = CostKeys(writer)
        numbers = dict(keys.numbers({OTHER, ONE}))
    stored = {tuple(row[1:]): row[0] for row in rows(store, "SELECT * FROM cost_keys")}
    assert stored == numbers
