"""Costs against two price tables that others keep, worked out here from their numbers alone.

Where both tables agree on the cost of a call, runtap's must be the same, but for one reason that is checked, too.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runtap_consumers.pricing import PriceTable
from runtap_schemas import Usage

pytestmark = pytest.mark.long

Table = Mapping[str, Mapping[str, Any]]


class Shape(NamedTuple):
    """A call: every input token is plain, audio, read from the cache or written to it."""

    name: str
    plain: int
    read: int = 0
    write_5m: int = 0
    write_1h: int = 0
    input_audio: int = 0
    output: int = 100
    reasoning: int = 0
    output_audio: int = 0
    tier: str | None = None

    @property
    def input(self) -> int:
        return self.plain + self.read + self.write_5m + self.write_1h + self.input_audio


SHAPES = (
    Shape("plain", 1_000),
    Shape("cached", 400, read=600, reasoning=40),
    Shape("written", 400, read=300, write_5m=200),
    Shape("written for an hour", 400, read=300, write_5m=200, write_1h=100),
    Shape("spoken", 400, input_audio=600, output_audio=40),
    Shape("half long", 110_000, read=20_000, write_5m=1_000),
    Shape("long", 230_000, read=20_000),
    Shape("longer", 280_000, read=20_000, reasoning=100),
    Shape("flex", 400, read=600, tier="flex"),
    Shape("flex and long", 280_000, read=20_000, reasoning=100, tier="flex"),
    Shape("priority", 400, read=600, tier="priority"),
    Shape("priority and long", 280_000, read=20_000, reasoning=100, tier="priority"),
)
# Pairs of a model and a shape whose cost both tables agree on, and runtap with them; of LiteLLM's providers.
FLOOR = {
    "anthropic": 98,
    "azure": 245,
    "bedrock": 69,
    "bedrock_converse": 129,
    "gemini": 48,
    "openai": 299,
    "perplexity": 106,
}


def load(name: str) -> Table:
    recordings = os.environ.get("RUNTAP_RECORDINGS")
    folder = os.environ.get("RUNTAP_DATA") or (recordings and Path(recordings).parent / "data")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"no {name}: RUNTAP_DATA names no folder that has it")
    # Decimals as written: a float would have to be rounded back.
    table: Table = json.loads((Path(folder) / name).read_text(), parse_float=Decimal)
    return table


def total(shape: Shape, prices: Mapping[str, Decimal | int | None]) -> Decimal | None:
    """Dollars; `None` where the table has no price for something that the call used."""
    counts = {
        "input": shape.plain,
        "read": shape.read,
        "write_5m": shape.write_5m,
        "write_1h": shape.write_1h,
        "input_audio": shape.input_audio,
        "output": shape.output - shape.output_audio,
        "output_audio": shape.output_audio,
    }
    dollars = Decimal(0)
    for name, count in counts.items():
        price = prices[name]
        if count and price is None:
            return None
        dollars += count * Decimal(price or 0)
    return dollars


def litellm_cost(entry: Mapping[str, Any], shape: Shape) -> Decimal | None:
    suffix = f"_{shape.tier}" if shape.tier else ""

    def price(key: str) -> Any:
        pattern = re.compile(rf"{key}_above_(\d+)k_tokens{suffix}$")
        above = {int(match[1]) * 1_000: value for name, value in entry.items() if (match := pattern.match(name))}
        reached = [start for start in above if shape.input > start]
        return above[max(reached)] if reached else entry.get(key + suffix)

    write = price("cache_creation_input_token_cost")
    names = {"input": price("input_cost_per_token"), "output": price("output_cost_per_token")}
    audio = {"input_audio": price("input_cost_per_audio_token"), "output_audio": price("output_cost_per_audio_token")}
    writes = {"write_5m": write, "write_1h": price("cache_creation_input_token_cost_above_1hr")}
    return total(shape, {**names, **writes, **audio, "read": price("cache_read_input_token_cost")})


def langfuse_cost(entry: Mapping[str, Any], shape: Shape) -> Decimal | None:
    def is_met(condition: Mapping[str, Any]) -> bool:
        if condition.get("operator") == "gt":
            return bool(shape.input > condition["value"])
        return condition["key"] == "service_tier" and shape.tier in condition["values"]

    met = [tier for tier in entry["tiers"] if all(is_met(condition) for condition in tier["conditions"])]
    chosen = max(met, key=lambda tier: len(tier["conditions"]))
    if shape.tier and not any(condition.get("key") == "service_tier" for condition in chosen["conditions"]):
        return None

    def price(*names: str) -> Any:
        return next((chosen["prices"][name] for name in names if name in chosen["prices"]), None)

    return total(
        shape,
        {
            "input": price("input", "input_text_tokens"),
            "read": price("input_cached_tokens", "input_cache_read", "cache_read_input_tokens"),
            "write_5m": price("input_cache_creation_5m", "input_cache_creation"),
            "write_1h": price("input_cache_creation_1h"),
            "input_audio": price("input_audio_tokens", "input_audio"),
            "output": price("output", "output_text_tokens"),
            "output_audio": price("output_audio_tokens", "output_audio"),
        },
    )


def runtap_cost(table: PriceTable, provider: str, model: str, shape: Shape, at: datetime) -> Decimal | None:
    usage = Usage(
        input_tokens=shape.input,
        output_tokens=shape.output,
        cache_read_tokens=shape.read,
        cache_write_5m_tokens=shape.write_5m,
        cache_write_1h_tokens=shape.write_1h,
        input_audio_tokens=shape.input_audio,
        reasoning_tokens=shape.reasoning,
        output_audio_tokens=shape.output_audio,
    )
    cost = table.price(provider, model, usage, int(at.timestamp()) * 10**9, shape.tier).cost_picodollars
    return None if cost is None else Decimal(cost) / 10**12


def is_regional(litellm: Table, provider: str, name: str, shape: Shape, ours: Decimal | None) -> bool:
    """Whether it is a Claude id of Bedrock without a region prefix, and costs what LiteLLM itself asks for one region.

    Such a call is made in one region, and AWS bills it on the regional usage type (AWS Price List API: a tenth above
    the global one). Both tables give it the price of `global.…`: BerriAI/litellm, issue 42679.
    """
    regional = litellm.get(f"us.{name}")
    if provider != "bedrock_converse" or not name.startswith("anthropic.claude-") or ours is None or regional is None:
        return False
    return ours == litellm_cost(regional, shape)


def test_cost_equals_that_of_two_other_tables_where_they_agree() -> None:
    litellm, langfuse = load("litellm_prices.json"), load("langfuse_prices.json")
    table = PriceTable.load()
    at = datetime(2026, 10, 20, tzinfo=UTC)
    equal: Counter[str] = Counter()
    regional: Counter[str] = Counter()
    not_agreed = 0
    unequal = []
    for key, entry in litellm.items():
        provider = entry["litellm_provider"]
        name = key.removeprefix(f"{provider}/")
        match = next((each for each in langfuse.values() if re.match(each["matchPattern"], name)), None)
        for shape in SHAPES if match else ():
            theirs, others = litellm_cost(entry, shape), langfuse_cost(match or {}, shape)
            if theirs is None or theirs != others:
                not_agreed += 1
                continue
            ours = runtap_cost(table, provider, name, shape, at)
            if ours == theirs:
                equal[provider] += 1
            elif is_regional(litellm, provider, name, shape, ours):
                regional[name] += 1
            else:
                unequal.append(f"{provider} {name}, {shape.name}: {theirs}, here {ours}")
    sys.stdout.write(f"equal: {dict(equal)}\nregional: {dict(regional)}\nnot agreed between them: {not_agreed}\n")
    assert unequal == []
    # Nothing is equal only because nothing was compared.
    assert {provider: min(equal[provider], pairs) for provider, pairs in FLOOR.items()} == FLOOR
    assert (len(regional), regional.total()) == (9, 61)
