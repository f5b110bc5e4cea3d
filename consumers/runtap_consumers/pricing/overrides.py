"""The owner's own prices: one TOML file of prices, tier factors, discounts and deployment names (`docs/costs.md`).

Prices are dollars per million tokens (searches and requests: per thousand), written as strings or plain numbers; both
are read as decimals. Of the entries that fit a call and have begun, the one that stands last in the file counts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from genai_prices.types import ModelPrice, Tier, TieredPrices
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtap_consumers.errors import PriceFileError

# A picodollar a token is six decimals of a dollar per million.
_Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]
_DollarsAThousand = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
# At most as long as a tier may be in a price class.
_TierName = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[a-z][a-z_]*$")]
_Percent = Annotated[Decimal, Field(ge=0, le=100)]
_Factor = Annotated[Decimal, Field(ge=0, le=100)]

_TOKEN_PRICES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_5m": "cache_write_5m_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "input_audio": "input_audio_mtok",
    "input_image": "input_image_mtok",
    "reasoning": "output_reasoning_mtok",
    "output_audio": "output_audio_mtok",
}
_COUNT_PRICES = {"web_search": "web_searches_kcount", "request": "requests_kcount"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _TokenPrices(_Strict):
    cache_read: _Dollars | None = None
    cache_write: _Dollars | None = None
    cache_write_5m: _Dollars | None = None
    cache_write_1h: _Dollars | None = None
    input_audio: _Dollars | None = None
    input_image: _Dollars | None = None
    reasoning: _Dollars | None = None
    output_audio: _Dollars | None = None


class LargeCalls(_TokenPrices):
    """What calls of more than `input_tokens` pay for all of their tokens; a class not named keeps its price."""

    input_tokens: Annotated[int, Field(ge=1, le=10**9, strict=True)]
    input: _Dollars | None = None
    output: _Dollars | None = None


class _Entry(_Strict):
    provider: _Name | None = None
    model: _Name
    begins: Annotated[date, Field(strict=True)] | None = Field(None, alias="from")

    def fits(self, providers: set[str], names: Collection[str]) -> bool:
        """Whether it is about a call of one of these providers and names (lower case)."""
        if self.provider is not None and self.provider.lower() not in providers:
            return False
        return any(_pattern(self.model).fullmatch(name) for name in names)

    def has_begun(self, day: date) -> bool:
        """Whether it is in force on a day, UTC."""
        return self.begins is None or self.begins <= day

    @property
    def subject(self) -> tuple[str | None, ...]:
        """What it is about: entries of one subject follow each other in time."""
        return (self.provider and self.provider.lower(), self.model.lower(), getattr(self, "tier", None))


class OwnPrice(_Entry, _TokenPrices):
    """The whole price of a model from a day on, in one service tier (`None`: standard).

    A class of tokens that is not named costs what the total costs that contains it.
    """

    tier: _TierName | None = None
    input: _Dollars
    output: _Dollars
    web_search: _DollarsAThousand | None = None
    request: _DollarsAThousand | None = None
    above: tuple[LargeCalls, ...] = ()

    @model_validator(mode="after")
    def _check_sizes(self) -> OwnPrice:
        sizes = [large.input_tokens for large in self.above]
        if sizes != sorted(set(sizes)):
            raise ValueError("the sizes of [[price.above]] must rise")
        return self

    def model_price(self) -> ModelPrice:
        """The same in genai-prices' form."""
        prices: dict[str, Decimal | TieredPrices | None] = {}
        for name, key in _TOKEN_PRICES.items():
            price: Decimal | None = getattr(self, name)
            tiers = [
                Tier(start=large.input_tokens, price=dearer)
                for large in self.above
                if (dearer := getattr(large, name)) is not None
            ]
            if tiers:
                otherwise = self.output if name in ("reasoning", "output_audio") else self.input
                prices[key] = TieredPrices(base=otherwise if price is None else price, tiers=tiers)
            elif price is not None:
                prices[key] = price
        for name, key in _COUNT_PRICES.items():
            if (count_price := getattr(self, name)) is not None:
                prices[key] = count_price
        return ModelPrice(**prices)


class TierFactor(_Entry):
    """What a service tier's tokens cost, as a multiple of the standard price."""

    tier: _TierName
    factor: _Factor


class Discount(_Entry):
    """What is taken off everything that a call costs."""

    percent: _Percent


class Seller(_Strict):
    """Who is paid for what is called at a host."""

    host: _Name
    provider: _Name


class OwnTerms(NamedTuple):
    """The entries about one model, in the file's order."""

    prices: tuple[OwnPrice, ...] = ()
    tiers: tuple[TierFactor, ...] = ()
    discounts: tuple[Discount, ...] = ()

    def price_at(self, tier: str, day: date) -> ModelPrice | None:
        """The owner's price in a tier ('': standard)."""
        fitting = [each for each in self.prices if (each.tier or "") == tier and each.has_begun(day)]
        return fitting[-1].model_price() if fitting else None

    def tier_factor_at(self, tier: str, day: date) -> Decimal | None:
        """By what the standard price is multiplied in a tier."""
        fitting = [each.factor for each in self.tiers if each.tier == tier and each.has_begun(day)]
        return fitting[-1] if fitting else None

    def share_at(self, day: date) -> Decimal:
        """What is left to pay after the discount."""
        fitting = [each.percent for each in self.discounts if each.has_begun(day)]
        return 1 - fitting[-1] / 100 if fitting else Decimal(1)


class Overrides(_Strict):
    """A file's content. `aliases`: by provider (`*`: any), what a call names -> the model that is priced."""

    aliases: dict[str, dict[str, _Name]] = Field(default_factory=dict)
    seller: tuple[Seller, ...] = ()
    price: tuple[OwnPrice, ...] = ()
    tier: tuple[TierFactor, ...] = ()
    discount: tuple[Discount, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not (self.aliases or self.seller or self.price or self.tier or self.discount)

    def seller_at(self, host: str) -> str | None:
        """Who is paid for calls to a host."""
        fitting = [each.provider for each in self.seller if _pattern(each.host).fullmatch(host.lower())]
        return fitting[-1] if fitting else None

    def real_name(self, providers: set[str], name: str) -> str:
        """The model behind a deployment's name; the name itself where none is given. All in lower case."""
        for provider, names in self.aliases.items():
            if provider == "*" or provider.lower() in providers:
                for alias, model in names.items():
                    if alias.lower() == name:
                        return model.lower()
        return name

    def terms(self, providers: set[str], names: Collection[str]) -> OwnTerms:
        """The entries about a model, by the names that a call gives to it and its provider (lower case)."""
        return OwnTerms(
            tuple(each for each in self.price if each.fits(providers, names)),
            tuple(each for each in self.tier if each.fits(providers, names)),
            tuple(each for each in self.discount if each.fits(providers, names)),
        )

    def sizes(self) -> set[int]:
        """Every number of input tokens beyond which a price changes."""
        return {large.input_tokens for price in self.price for large in price.above}


def load_overrides(path: Path) -> Overrides:
    """Reads and checks a file.

    Raises:
        PriceFileError: it cannot be read, or something in it cannot work; every such thing is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PriceFileError(f"{path}: cannot be read: {reason}. Check RUNTAP_PRICES") from error
    return parse_overrides(text, str(path))


def parse_overrides(text: str, name: str) -> Overrides:
    """Checks a file's text.

    Args:
        text: TOML.
        name: of the file, for messages.

    Raises:
        PriceFileError: something in it cannot work; every such thing is named.
    """
    try:
        overrides = Overrides.model_validate(tomllib.loads(text, parse_float=Decimal))
    except tomllib.TOMLDecodeError as error:
        raise PriceFileError(f"{name}: no TOML: {error}") from error
    except ValidationError as error:
        problems = [(problem["loc"], _explain(problem)) for problem in error.errors(include_url=False)]
        raise PriceFileError(_message(name, problems)) from error
    problems = list(_check_order(overrides))
    if problems:
        raise PriceFileError(_message(name, problems))
    return overrides


def _message(name: str, problems: Iterable[tuple[tuple[str | int, ...], str]]) -> str:
    return "; ".join(f"{name}: {_shown(location)}: {reason}" for location, reason in problems)


def _check_order(overrides: Overrides) -> Iterator[tuple[tuple[str | int, ...], str]]:
    kinds: dict[str, Sequence[_Entry]] = {
        "price": overrides.price,
        "tier": overrides.tier,
        "discount": overrides.discount,
    }
    for kind, entries in kinds.items():
        latest: dict[tuple[str | None, ...], date] = {}
        for number, entry in enumerate(entries):
            begins = entry.begins or date.min
            if entry.subject in latest and begins <= latest[entry.subject]:
                reason = f"an entry above it for model {entry.model!r} begins on the same day or later"
                yield (kind, number, "from"), f"{reason}, and would never count: write them in the order of their days"
            latest[entry.subject] = begins


def _explain(problem: Any) -> str:
    key = next((str(part) for part in reversed(problem["loc"]) if isinstance(part, str)), "the file")
    if problem["type"] == "extra_forbidden":
        return f"there is no {key!r} here: docs/costs.md lists what there is"
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    shown = problem["input"]
    given = f" = {str(shown)!r:.80}" if not isinstance(shown, dict | list) else ""
    return f"{key}{given}: {problem['msg']}"


def _shown(location: tuple[str | int, ...]) -> str:
    """A location as pydantic gives it, ("price", 2, "above", 0, "input"), counted from 1: `price 3, above 1, input`."""
    return "".join(f" {part + 1}" if isinstance(part, int) else f", {part}" for part in location).removeprefix(", ")


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, glob.lower().split("*"))), re.DOTALL)
