"""How alerts say where, for how long, and which command shows it."""

from __future__ import annotations

import shlex
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import RuleSettings
from runtap_consumers.alerts.state import AnySettings, Verdict
from runtap_consumers.alerts.windows import Window
from runtap_consumers.instants import format_instant
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS

_FILTERS = {"costs": ("service", "environment", "provider", "model"), "report": ("service",)}


def facts_of(settings: AnySettings, group: Group) -> dict[str, str]:
    """What an alert is about, by name."""
    return dict(zip(settings.group_by, group, strict=True))


def where_words(settings: AnySettings, group: Group) -> str:
    """What an alert is about, for people."""
    facts = {**settings.where, **facts_of(settings, group)}
    return ", ".join(f"{name} {value or 'unknown'}" for name, value in facts.items()) or "everything"


def span_words(window: Window) -> str:
    """How long a window is, for people."""
    span_ns = window.to_ns - window.from_ns
    for unit_ns, one, many in ((DAY_NS, "a day", "days"), (HOUR_NS, "an hour", "hours")):
        if span_ns % unit_ns == 0:
            return one if span_ns == unit_ns else f"{span_ns // unit_ns} {many}"
    return "a minute" if span_ns == MINUTE_NS else f"{span_ns // MINUTE_NS} minutes"


def query_of(command: str, settings: AnySettings, change: Verdict, zone: ZoneInfo) -> str:
    """The command line that shows what a change is about: over its window, filtered and cut as far as it can be."""
    words = ["runtap", *command.split()]
    facts = {**settings.where, **facts_of(settings, change.group)}
    filters = _FILTERS.get(words[1], ())
    for name, value in facts.items():
        if name in filters and value:
            words += [f"--{name}", value]
    if words[1] == "costs":
        by = [name for name in settings.group_by if name not in filters]
        words += ["--by", by[0] if by else "model"]
    if change.window is not None:
        from_ns, to_ns = change.window.from_ns, change.window.to_ns
        words += ["--since", format_instant(from_ns, zone), "--until", format_instant(to_ns, zone)]
    return shlex.join(words)


def title_of(settings: AnySettings) -> str:
    """What a rule judges, for people."""
    if isinstance(settings, RuleSettings):
        return settings.what
    return f"cost a {settings.period}"
