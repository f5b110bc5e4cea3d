"""Pricing a call into measures, adding them up, and the instant at which an event counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.batch import add_up, add_up_by_value, believed_time, price_call
from runtap_consumers.projections.rollups import COST_MEASURES, SKEW_AHEAD_NS, SKEW_BEHIND_NS, TOKEN_CLASSES
from runtap_schemas import Usage
from samples import model_call

PRICES = PriceTable([], "none")
NOW = 1_750_000_000 * 10**9

rows = st.lists(st.integers(0, 10**16), min_size=16, max_size=16)


@given(st.lists(rows, min_size=1, max_size=9))
def test_columns_add_up_however_many_rows_there_are(measures: list[list[int]]) -> None:
    before = [list(row) for row in measures]
    assert add_up(measures) == [sum(row[place] for row in measures) for place in range(16)]
    assert measures == before


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "", None]), rows), max_size=12))
def test_measures_add_up_by_value_without_those_that_have_none(measures: list[tuple[str | None, list[int]]]) -> None:
    found = add_up_by_value(measures)
    assert set(found) == {value for value, _ in measures if value is not None}
    for value, sums in found.items():
        assert sums == add_up([row for other, row in measures if other == value])


def test_measures_of_a_call_stand_in_their_declared_order() -> None:
    counts = {name: place + 2 for place, name in enumerate(TOKEN_CLASSES)}
    run = model_call(NOW, provider=None, model=None, request_model=None, usage=Usage(**counts))
    call = price_call(run, run, NOW, PRICES)
    measures = dict(zip([measure.name for measure in COST_MEASURES], call.measures, strict=True))
    assert {name: measures[name] for name in TOKEN_CLASSES} == counts
    assert (measures["calls"], measures["priced_calls"], measures["unpriced_calls"]) == (1, 0, 1)


def test_an_instant_is_believed_up_to_its_limits() -> None:
    for believed in (NOW + SKEW_AHEAD_NS, NOW, NOW - SKEW_BEHIND_NS):
        assert believed_time(believed, NOW) == believed
    for not_believed in (NOW + SKEW_AHEAD_NS + 1, NOW - SKEW_BEHIND_NS - 1, 0):
        assert believed_time(not_believed, NOW) == NOW
