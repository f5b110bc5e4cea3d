"""What holds for all prices and all calls: sums, parts and totals, and pricing stored sums again."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, time
from decimal import Decimal

from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as some

from runtap_consumers.correct.price_terms import find_terms, read_class
from runtap_consumers.correct.reprice import apply_terms
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.rollups import COST_MEASURES, TOKEN_CLASSES
from runtap_consumers.units import HOUR_NS
from runtap_schemas import Usage

# An hour before midnight, UTC.
BEGIN_NS = int(datetime(2026, 3, 2, 23, tzinfo=UTC).timestamp()) * 10**9
# Making a failing example smaller takes minutes: it is small enough.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
OPTIONAL_PRICES = (
    *("cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "input_audio_mtok", "input_image_mtok"),
    *("output_audio_mtok", "output_reasoning_mtok", "web_searches_kcount", "requests_kcount"),
)

amounts = some.integers(0, 100_000_000).map(lambda micros: Decimal(micros) / 10**6)
token_prices = some.one_of(
    amounts,
    some.builds(
        lambda base, start, price: TieredPrices(base=base, tiers=[Tier(start=start, price=price)]),
        amounts,
        some.sampled_from([1_000, 32_000, 50_000, 128_000]),
        amounts,
    ),
)
model_prices = some.builds(
    lambda whole, parts: ModelPrice(**whole, **parts),
    some.fixed_dictionaries({"input_mtok": token_prices, "output_mtok": token_prices}),
    some.dictionaries(some.sampled_from(OPTIONAL_PRICES), amounts),
)
conditions = some.sampled_from(
    [
        StartDateConstraint(start_date=date(2026, 3, 3)),
        TimeOfDateConstraint(start_time=time(23, 20, tzinfo=UTC), end_time=time(0, 10, tzinfo=UTC)),
    ]
)


def table_of(prices: ModelPrice | list[ConditionalPrice]) -> PriceTable:
    model = ModelInfo(id="m", match=ClauseEquals(equals="m"), prices=prices)
    return PriceTable([Provider(id="acme", name="Acme", api_pattern="acme", models=[model])], "test")


tables = some.one_of(
    model_prices.map(table_of),
    some.builds(
        lambda first, condition, second: table_of(
            [ConditionalPrice(prices=first), ConditionalPrice(prices=second, constraint=condition)]
        ),
        model_prices,
        conditions,
        model_prices,
    ),
    some.just(table_of(ModelPrice())),
)


@some.composite
def usages(draw: some.DrawFn) -> Usage:
    input_tokens = draw(some.sampled_from([0, 1, 900, 1_001, 40_000, 60_000, 130_000]))
    output_tokens = draw(some.integers(0, 5_000))

    def part(most: int) -> int | None:
        return draw(some.one_of(some.none(), some.just(0), some.integers(0, max(most, 0))))

    is_odd = draw(some.integers(0, 9)) == 0
    return Usage(
        input_tokens=None if is_odd and draw(some.booleans()) else input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=part(input_tokens // 3 if not is_odd else input_tokens + 1),
        cache_write_5m_tokens=part(input_tokens // 3),
        cache_write_1h_tokens=part(input_tokens // 3),
        input_audio_tokens=part(input_tokens // 2),
        input_image_tokens=part(input_tokens // 2),
        reasoning_tokens=part(output_tokens),
        output_audio_tokens=part(output_tokens),
        web_searches=part(3),
    )


calls = some.lists(some.tuples(usages(), some.integers(0, 2 * HOUR_NS - 1)), min_size=1, max_size=8)


def folded(table: PriceTable, made: list[tuple[Usage, int]]) -> dict[tuple[int, str], list[tuple[Usage, int]]]:
    """The calls of each row that a fold makes: by hour and price class."""
    rows: dict[tuple[int, str], list[tuple[Usage, int]]] = defaultdict(list)
    for usage, after_ns in made:
        at_ns = BEGIN_NS + after_ns
        price_class = table.price("acme", "m", usage, at_ns).price_class
        rows[at_ns - at_ns % HOUR_NS, price_class].append((usage, at_ns))
    return rows


def measures_of(table: PriceTable, made: list[tuple[Usage, int]]) -> dict[str, int]:
    costs = [table.price("acme", "m", usage, at_ns).cost_picodollars for usage, at_ns in made]
    metered = [usage.input_tokens is not None and usage.output_tokens is not None for usage, _ in made]
    measures = dict.fromkeys((measure.name for measure in COST_MEASURES), 0)
    measures["calls"] = len(made)
    measures["priced_calls"] = sum(cost is not None for cost in costs)
    measures["unpriced_calls"] = sum(m and cost is None for m, cost in zip(metered, costs, strict=True))
    measures["unmetered_calls"] = len(made) - measures["priced_calls"] - measures["unpriced_calls"]
    for name in TOKEN_CLASSES:
        measures[name] = sum(getattr(usage, name) or 0 for usage, _ in made)
    measures["cost_picodollars"] = sum(cost or 0 for cost in costs)
    return measures


def priced_again(table: PriceTable, hour: int, price_class: str, measures: dict[str, int]) -> dict[str, int] | None:
    """An hour's measures under other prices; `None` where these cannot be told."""
    key = {"provider": "acme", "model": "m", "price_class": price_class}
    terms = find_terms(table, key, measures, (hour, hour + HOUR_NS))
    return None if terms is None else apply_terms(terms, measures)


@settings(max_examples=50, deadline=None, phases=PHASES)
@given(tables, calls)
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(table: PriceTable, made: list[tuple[Usage, int]]) -> None:
    for (hour, price_class), members in folded(table, made).items():
        measures = measures_of(table, members)
        again = priced_again(table, hour, price_class, measures)
        if measures["priced_calls"] and measures["unpriced_calls"]:
            # Some of them have a price and others have none: a sum cannot say.
            assert again is None
        elif again is None:
            assert len(members) > 1
            assert read_class(price_class).marks & {"audio", "mixed"}
        else:
            # Pricing again at the same prices changes nothing.
            assert again == measures


@settings(max_examples=80, deadline=None, phases=PHASES)
@given(tables, tables, calls)
def test_what_is_priced_again_is_what_a_fold_under_the_new_prices_makes(
    old: PriceTable, new: PriceTable, made: list[tuple[Usage, int]]
) -> None:
    for (hour, price_class), members in folded(old, made).items():
        again = priced_again(new, hour, price_class, measures_of(old, members))
        if again is None:
            continue
        assert again == measures_of(new, members)
        # There and back.
        back = priced_again(old, hour, price_class, again)
        assert back is None or back == measures_of(old, members)


@settings(max_examples=50, deadline=None, phases=PHASES)
@given(tables, tables, calls, some.integers(0, 8))
def test_parts_that_are_priced_as_their_whole_add_up_to_it(
    old: PriceTable, new: PriceTable, made: list[tuple[Usage, int]], cut: int
) -> None:
    for (hour, price_class), members in folded(old, made).items():
        whole, parts = measures_of(old, members), (members[:cut], members[cut:])
        terms = find_terms(
            new, {"provider": "acme", "model": "m", "price_class": price_class}, whole, (hour, hour + HOUR_NS)
        )
        if terms is None:
            continue
        priced = [apply_terms(terms, measures_of(old, part)) for part in parts]
        assert apply_terms(terms, whole) == {name: sum(part[name] for part in priced) for name in whole}


@settings(max_examples=30, deadline=None, phases=PHASES)
@given(tables, calls)
def test_parts_beyond_their_total_have_no_price_and_no_float_comes_near_one(
    table: PriceTable, made: list[tuple[Usage, int]]
) -> None:
    for usage, after_ns in made:
        priced = table.price("acme", "m", usage, BEGIN_NS + after_ns)
        cost = priced.cost_picodollars
        assert cost is None or (type(cost) is int and cost >= 0)
        cached = sum(
            getattr(usage, name) or 0
            for name in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
        )
        if usage.input_tokens is not None and cached > usage.input_tokens:
            assert cost is None
            assert "impossible" in read_class(priced.price_class).marks


@given(
    some.sampled_from(["", "flex", "batch"]),
    some.sampled_from(["", "32000-50000", "128000-"]),
    some.sampled_from(["", "utc2320-0010"]),
    some.sets(some.sampled_from(["searched", "audio", "mixed"])),
)
def test_a_price_class_is_read_as_it_was_written(tier: str, size: str, window: str, marks: set[str]) -> None:
    read = read_class("/".join(filter(None, (tier, size, window, *sorted(marks)))) or "standard")
    assert read.tier == tier
    assert (read.more_than, read.up_to) == {
        "": (0, 32_000),
        "32000-50000": (32_000, 50_000),
        "128000-": (128_000, None),
    }[size]
    assert read.window == ((23 * 60 + 20, 10) if window else None)
    assert read.marks == marks
