"""The file of alert rules: TOML, checked whole before a rule of it counts."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runtap_consumers.alerts.channels import Channel
from runtap_consumers.errors import AlertFileError
from runtap_consumers.figures.quantities import PRESENT_QUANTITIES, QUANTITIES, PresentQuantity, Quantity
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from runtap_schemas.alerts import Severity

FILE_NAME = "alerts.toml"
# What has no value to compare: it happens, or it does not.
OCCURRENCES = ("new_error_group", "events_lost")
# Minutes, and hours of attributes, are kept for two days: the last hour is what a window may be judged late.
MOST_MINUTES_NS = 47 * HOUR_NS
_MOST_NS = 31 * DAY_NS
_UNITS_NS = {"s": SECOND_NS, "m": MINUTE_NS, "h": HOUR_NS, "d": DAY_NS}


def _duration(value: object) -> int:
    found = re.fullmatch(r"(\d{1,6})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no duration: expected a text such as 30s, 5m, 24h or 31d")
    return int(found[1]) * _UNITS_NS[found[2]]


def _amount(value: object) -> object:
    # A float of TOML is no exact amount; written as text it is.
    if isinstance(value, (bool, float)):
        raise ValueError(f'{value!r}: write the amount as text, as in "{value}"')
    return value


_Duration = Annotated[int, BeforeValidator(_duration)]
_Amount = Annotated[Decimal, BeforeValidator(_amount), Field(ge=0, le=10**15, max_digits=30)]
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Text = Annotated[str, Field(max_length=500)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: _Id
    group_by: tuple[_Name, ...] = Field((), max_length=4)
    where: dict[_Name, str] = {}
    severity: Severity = "warning"
    labels: dict[_Name, _Text] = Field({}, max_length=32)
    runbook: _Text | None = None

    @property
    def revision(self) -> str:
        """Hash of everything that it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def names(self) -> tuple[str, ...]:
        """What it groups or filters by."""
        return (*self.group_by, *self.where)


class RuleSettings(_Settings):
    """A `[[rule]]`."""

    what: str
    window: _Duration | None = None
    above: _Amount | None = None
    below: _Amount | None = None
    times_usual: _Amount | None = None
    critical: _Amount | None = None
    recover: _Amount | None = None
    for_: _Duration = Field(0, alias="for")
    least_calls: int = Field(0, ge=0)
    no_data: Literal["resolve", "keep", "alert"] = "resolve"
    repeat: _Duration | None = None

    @model_validator(mode="after")
    def _check(self) -> RuleSettings:
        known = (*QUANTITIES, *PRESENT_QUANTITIES, *OCCURRENCES)
        if self.what not in known:
            raise ValueError(f"what = {self.what!r}: expected one of {', '.join(known)}")
        limits = [name for name in ("above", "below", "times_usual") if getattr(self, name) is not None]
        if self.what in OCCURRENCES:
            # Said of each service and error group by itself.
            unused = self.model_fields_set - {"id", "what", "where", "severity", "labels", "runbook"}
            if unused:
                raise ValueError(f"{sorted(unused)[0].rstrip('_')}: {self.what!r} happens or does not; leave it out")
            return self
        if len(limits) != 1:
            raise ValueError("expected exactly one of above, below and times_usual")
        self._check_window()
        self._check_limits(limits[0])
        return self

    def _check_window(self) -> None:
        if self.what in PRESENT_QUANTITIES:
            if unused := self.model_fields_set & {"window", "times_usual", "least_calls"}:
                raise ValueError(f"{sorted(unused)[0]}: {self.what!r} is what it is now; leave it out")
            return
        if self.window is None or not MINUTE_NS <= self.window <= _MOST_NS:
            raise ValueError('expected window = "1m" to "31d"')
        if self.window % (MINUTE_NS if self.window <= MOST_MINUTES_NS else HOUR_NS):
            raise ValueError("window: expected whole minutes, and beyond 47h whole hours")

    def _check_limits(self, limit: str) -> None:
        threshold = getattr(self, limit)
        is_low = limit == "below"
        if self.times_usual is not None and self.times_usual <= 1:
            raise ValueError('times_usual: expected a factor above 1, as in "1.5"')
        for name, is_beyond in (("critical", is_low), ("recover", not is_low)):
            value = getattr(self, name)
            if value is not None and (value > threshold if is_beyond else value < threshold):
                side = "at most" if is_beyond else "at least"
                raise ValueError(f"{name} = {value}: expected {side} {limit} = {threshold}")


class BudgetSettings(_Settings):
    """A `[[budget]]`: what a calendar period may cost."""

    period: Literal["day", "week", "month"]
    limit: _Amount
    at: tuple[Annotated[int, Field(ge=1, le=1_000)], ...] = Field((50, 80, 100), min_length=1, max_length=10)
    forecast: bool = True

    @model_validator(mode="after")
    def _check(self) -> BudgetSettings:
        if self.limit == 0:
            raise ValueError("limit: expected more than 0 dollars")
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at = {list(self.at)}: expected rising percentages, each once")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: tuple[RuleSettings, ...] = ()
    budget: tuple[BudgetSettings, ...] = ()
    channel: tuple[Channel, ...] = ()


@dataclass(frozen=True)
class RuleFile:
    """What a file of rules says. `text` is the file's; `name` for people."""

    name: str
    text: str
    rules: tuple[RuleSettings | BudgetSettings, ...]
    channels: tuple[Channel, ...]


def default_text() -> str:
    """The built-in file."""
    return files("runtap_consumers.alerts").joinpath("default.toml").read_text(encoding="utf-8")


def find_rules(configured: str | None, attributes: Sequence[str]) -> RuleFile:
    """The rules that count: of `configured` (RUNTAP_ALERTS), else `alerts.toml` here, else the built-in ones.

    Args:
        configured: a file, which then must exist.
        attributes: the keys of RUNTAP_COST_BY.

    Raises:
        AlertFileError: it cannot be read, or says what cannot be; every mistake, with rule and key.
    """
    if configured is None and not Path(FILE_NAME).exists():
        return parse_rules(default_text(), "the built-in rules", attributes)
    path = Path(configured or FILE_NAME)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AlertFileError(f"cannot read the alert rules {path}: {error}") from error
    return parse_rules(text, str(path), attributes)


def parse_rules(text: str, name: str, attributes: Sequence[str]) -> RuleFile:
    """Reads a file's text; as `find_rules`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AlertFileError(f"{name}: {error}") from error
    try:
        found = _File.model_validate(data)
    except ValidationError as error:
        raise AlertFileError("\n".join(f"{name}: {line}" for line in _told(error, data))) from error
    rules: tuple[RuleSettings | BudgetSettings, ...] = (*found.rule, *found.budget)
    mistakes = [
        *_repeated("rule", rules),
        *_repeated("channel", found.channel),
        *(each for rule in rules for each in _impossible(rule, attributes)),
    ]
    if mistakes:
        raise AlertFileError("\n".join(f"{name}: {line}" for line in mistakes))
    return RuleFile(name, text, rules, found.channel)


def quantity_of(rule: RuleSettings | BudgetSettings) -> Quantity | PresentQuantity | None:
    """What a rule judges; `None`: occurrences."""
    what = "cost" if isinstance(rule, BudgetSettings) else rule.what
    return QUANTITIES.get(what) or PRESENT_QUANTITIES.get(what)


def attribute_of(rule: RuleSettings | BudgetSettings, quantity: Quantity) -> str | None:
    """The attribute of costs that a rule groups or filters by."""
    return next((name for name in rule.names if name not in quantity.rollup.keys), None)


def _told(error: ValidationError, data: Mapping[str, Any]) -> Iterator[str]:
    for each in error.errors():
        where, key = [], ".".join(map(str, each["loc"]))
        if len(each["loc"]) > 1 and isinstance(each["loc"][1], int):
            kind, index = str(each["loc"][0]), each["loc"][1]
            rule_id = data[kind][index].get("id") if isinstance(data[kind][index], dict) else None
            where = [f"{kind} {rule_id!r}" if rule_id else f"{kind} number {index + 1}"]
            key = ".".join(map(str, each["loc"][2:]))
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            message = "there is no such key"
        elif each["type"] not in ("value_error", "missing") and each["loc"][0] != "channel":
            # Addresses of webhooks are often secrets themselves.
            message = f"{each['input']!r}: {message}"
        yield ": ".join([*where, *([key] if key else []), message])


def _repeated(kind: str, named: Sequence[_Settings | Channel]) -> Iterator[str]:
    ids = [each.id for each in named]
    for name in sorted({each for each in ids if ids.count(each) > 1}):
        yield f"{name!r} is the id of more than one {kind}: each needs one of its own"


def _impossible(rule: RuleSettings | BudgetSettings, attributes: Sequence[str]) -> Iterator[str]:
    """What cannot be judged, and why."""
    title = f"{'budget' if isinstance(rule, BudgetSettings) else 'rule'} {rule.id!r}"
    quantity = quantity_of(rule)
    if quantity is None:
        names: tuple[str, ...] = ("service", "environment") if getattr(rule, "what", "") == "new_error_group" else ()
    else:
        names = quantity.names(attributes) if isinstance(quantity, Quantity) else quantity.group_names
    for name in rule.names:
        if name not in names:
            kept = ", ".join(names) or "nothing: leave it out"
            yield f"{title}: {name!r}: figures of this kind are kept by {kept}"
    twice = {name for name in rule.group_by if rule.group_by.count(name) > 1 or name in rule.where}
    if twice:
        yield f"{title}: group_by: {sorted(twice)[0]!r} stands twice"
    if not isinstance(quantity, Quantity):
        return
    of_attributes = [name for name in rule.names if name not in quantity.rollup.keys]
    if len(of_attributes) > 1:
        yield f"{title}: {' and '.join(of_attributes)}: costs are kept by one attribute at a time"
    window = getattr(rule, "window", None)
    if of_attributes and window is not None:
        if window % HOUR_NS:
            yield f"{title}: window: by {of_attributes[0]} there are whole hours only"
        elif window > MOST_MINUTES_NS and window % DAY_NS:
            yield f"{title}: window: by {of_attributes[0]} there are whole days only beyond 47h"
