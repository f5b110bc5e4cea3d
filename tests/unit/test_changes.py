"""Why costs differ: each factor by hand, and that the parts add up whatever was used."""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from runtap_consumers.figures.changes import _KINDS, PARTS, Used, split


def used(
    calls: int, input_tokens: int = 0, output: int = 0, read: int = 0, price: int = 4, other: int = 0, less: int = 3
) -> Used:
    """Calls of so many tokens altogether: input at `price`, output at 20, what was read from the cache `less`."""
    counts = {"request": calls, "input": input_tokens, "output": output, "cache_read": read}
    costs = {"input": input_tokens * price, "output": output * 20, "cache_read": -less * read}
    return Used(
        calls, dict.fromkeys((*_KINDS, "request"), 0) | counts, dict.fromkeys((*_KINDS, "request"), 0) | costs, other
    )


def parts(**amounts: int) -> dict[str, int]:
    return dict.fromkeys(PARTS, 0) | amounts


def test_each_factor_that_changes_alone_is_the_whole_difference() -> None:
    old = {"m": used(10, 1_000, 100, 400)}
    assert split(old, {"m": used(20, 2_000, 200, 800)}) == {"m": parts(volume=4_800)}
    assert split(old, {"m": used(10, 2_000, 200, 800)}) == {"m": parts(tokens=4_800)}
    assert split(old, {"m": used(10, 1_000, 100, 900)}) == {"m": parts(cached=-1_500)}
    assert split(old, {"m": used(10, 1_000, 100, 400, price=6)}) == {"m": parts(price=2_000)}
    assert split(old, {"m": used(10, 1_000, 100, 400, other=7)}) == {"m": parts(other=7)}
    assert split(old, old) == {"m": parts()}


def test_calls_that_go_from_a_model_to_a_dearer_one_are_mix() -> None:
    old = {"cheap": used(10, 1_000), "dear": used(10, 1_000, price=40)}
    found = split(old, {"cheap": used(5, 500), "dear": used(15, 1_500, price=40)})
    assert found == {"cheap": parts(mix=-2_000), "dear": parts(mix=20_000)}


def test_a_model_that_one_side_alone_has_is_mix_and_the_others_more_calls_are_volume() -> None:
    found = split({"old": used(10, 1_000)}, {"new": used(20, 2_000, 10)})
    assert found == {"old": parts(volume=4_000, mix=-8_000), "new": parts(mix=8_200)}
    assert split({}, {"new": used(1, 100)}) == {"new": parts(mix=400)}
    assert split({"old": used(1, 100)}, {}) == {"old": parts(volume=-400)}


def test_factors_are_replaced_in_their_order() -> None:
    # Twice the calls, then twice the tokens, then half of it cached, then at another price.
    found = split({"m": used(10, 1_000)}, {"m": used(20, 4_000, read=2_000, price=8, less=6)})
    assert found == {"m": parts(volume=4_000, tokens=8_000, cached=-12_000, price=16_000)}


def test_a_rate_that_one_side_did_not_use_is_the_other_s() -> None:
    found = split({"m": used(10, 1_000, read=0)}, {"m": used(10, 1_000, read=500)})
    assert found == {"m": parts(cached=-1_500)}


def test_a_rest_of_a_picodollar_goes_to_the_largest_remainder() -> None:
    found = split({"m": used(3, 10)}, {"m": used(4, 11)})["m"]
    volume, tokens = Fraction(4 * 40, 3) - 40, 44 - Fraction(4 * 40, 3)
    assert (volume, tokens) == (Fraction(40, 3), Fraction(-28, 3))
    # 13.33 and -9.33, of which -10 is further from its floor.
    assert found == parts(volume=13, tokens=-9)


def _any_use(chance: random.Random) -> Used:
    calls = chance.choice([0, 1, chance.randrange(10**6)])
    if not calls:
        return Used(other=chance.randrange(10**9))
    counts = {"request": calls, "input": chance.randrange(10**9), "output": chance.choice([0, chance.randrange(10**9)])}
    for kind in _KINDS[2:]:
        whole = "output" if kind in ("reasoning", "output_audio") else "input"
        counts[kind] = chance.choice([0, chance.randint(0, counts[whole])])
    costs = {kind: count * chance.randrange(-(10**6), 10**8) for kind, count in counts.items()}
    return Used(calls, counts, costs, chance.randrange(10**9))


@settings(deadline=None)
@given(st.integers(0, 2**63))
def test_parts_add_up_to_the_difference_of_each_model(seed: int) -> None:
    chance = random.Random(seed)
    before, now = ({name: _any_use(chance) for name in "abc" if chance.random() < 0.7} for _ in range(2))
    found = split(before, now)
    assert set(found) == {*before, *now}
    for model, of_model in found.items():
        assert set(of_model) == set(PARTS)
        assert sum(of_model.values()) == now.get(model, Used()).cost - before.get(model, Used()).cost
