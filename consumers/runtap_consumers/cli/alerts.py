"""`runtap alerts`: what fires and what fired, the file of rules, and what it would have said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtap_consumers.cli import printing
from runtap_consumers.cli.look import FromBeginning, Json, run_until_ended
from runtap_consumers.cli.options import Csv, JsonLines, Limit, Since, Until, Wide, instant_of, takes_settings
from runtap_consumers.cli.terminal import say, write_lines
from runtap_consumers.errors import AlertFileError, InputError, StoreError
from runtap_consumers.instants import format_instant
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.units import DAY_NS
from runtap_schemas.topics import alerts_topic

if TYPE_CHECKING:
    from runtap_consumers.alerts.state import Rule
    from runtap_consumers.store.engine import Store

alerts_app = typer.Typer(help="What fires, and the rules.", no_args_is_help=True)
_COLUMNS = "at severity? status id* summary*"
_RULES = "rule what groups calls note*"
_SAID = "rule status window_to summary*"
_CHECKED_NS = 7 * DAY_NS
RulesFile = Annotated[Path | None, typer.Argument(metavar="[FILE]", show_default=False)]


@alerts_app.command("list")
@takes_settings("database_url", "timezone")
def list_alerts(
    settings: ConsumerSettings,
    since: Since = None,
    until: Until = None,
    rule: Annotated[str | None, typer.Option(help="Only this rule.")] = None,
    service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    firing: Annotated[bool, typer.Option("--firing", help="Only what fires now.")] = False,
    limit: Limit = 50,
    wide: Wide = False,
    csv: Csv = False,
    json: JsonLines = False,
) -> None:
    """Alerts of the last 24 hours, newest first: fired, resolved and noticed."""
    found = _read(settings, since, until, service)
    if firing:
        ended = {alert["incident_id"] for alert in found if alert["status"] == "resolved"}
        newest = {alert["incident_id"]: alert for alert in reversed(found) if alert["status"] == "firing"}
        found = [alert for alert in reversed(newest.values()) if alert["incident_id"] not in ended]
    rows = [alert for alert in found if rule in (None, alert["rule"]["id"])]
    nothing = "No alert in this range: `runtap alerts check` says what the rules meet."
    printing.print_list(rows[: limit or None], _COLUMNS, nothing, as_json=json, as_csv=csv, wide=wide)


@alerts_app.command("show")
@takes_settings("database_url", "timezone")
def show_alert(
    settings: ConsumerSettings,
    alert_id: Annotated[str, typer.Argument(metavar="ID", help="Of an alert or an incident, or how it begins.")],
    json: JsonLines = False,
) -> None:
    """An alert with all that it says, and what became of its incident."""
    found = [
        alert
        for alert in _read(settings, "400d", None, None)
        if alert["id"].startswith(alert_id) or alert["incident_id"].startswith(alert_id)
    ]
    incidents = {alert["incident_id"] for alert in found}
    if not found:
        raise InputError(f"there is no alert {alert_id!r}: `runtap alerts list --since 7d` shows those there are")
    if len(incidents) > 1:
        raise InputError(f"{alert_id!r} is how {len(incidents)} incidents begin: give more of it")
    if json:
        write_lines(reversed(found))
        return
    for name, value in found[0].items():
        if value not in (None, [], {}) and name != "schema":
            say(f"{name:15} {_text(value)}")
    say("")
    for alert in reversed(found):
        say(f"{alert['at']}  {alert['status']:8}  {alert['summary']}")


@alerts_app.command("tail")
@takes_settings("bootstrap_servers", "timezone")
def tail_alerts(settings: ConsumerSettings, json: Json = False, from_beginning: FromBeginning = False) -> None:
    """Alerts as they are raised, one line each. Ctrl-C ends it."""
    from runtap_consumers.cli.tail import alert_of, as_json, as_lines, follow

    show = as_json if json else as_lines(settings.zone())
    run_until_ended(follow(settings, alerts_topic(settings.topic_prefix), from_beginning, alert_of, show))


@alerts_app.command("init")
def init_rules(file: Annotated[Path, typer.Argument(metavar="[FILE]")] = Path("alerts.toml")) -> None:
    """Writes the built-in rules to a file, to begin with. One that is there is left alone."""
    from runtap_consumers.alerts.rule_file import default_text

    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(default_text())
    except FileExistsError as error:
        raise InputError(f"{file} is there already: name another file, or remove it first") from error
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}") from error
    say(f"{file} has the built-in rules. `runtap alerts check {file}` says what they meet.")


@alerts_app.command("check")
@takes_settings("database_url", "timezone", "cost_by")
def check_rules(settings: ConsumerSettings, file: RulesFile = None, json: JsonLines = False) -> None:
    """Checks a file of rules; with a store, says what each rule met in the last 7 days. Exits with 1 on a mistake."""
    from runtap_consumers.alerts.rule_file import find_rules
    from runtap_consumers.alerts.rules import make_rules
    from runtap_consumers.store.engine import open_store

    try:
        found = find_rules(str(file) if file is not None else settings.alerts, settings.cost_attributes)
    except AlertFileError as error:
        for line in str(error).splitlines():
            say(line, err=True)
        raise typer.Exit(1) from error
    rules = make_rules(found.rules)
    try:
        with closing(open_store(settings.database_url)) as store:
            rows = list(_met(store, rules, time.time_ns()))
    except StoreError:
        rows = [_row(rule) for rule in rules]
    if not json:
        say(f"{found.name}: {len(rules)} rules, {len(found.channels)} channels, no mistake.")
    printing.print_list(rows, _RULES, "There is no rule in it: nothing will be said.", as_json=json)


@alerts_app.command("backtest")
@takes_settings("database_url", "timezone", "cost_by")
def backtest(
    settings: ConsumerSettings,
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="Begin, as --since takes it: 7d.")],
    file: RulesFile = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End; now if left out.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what was raised; exit with 1 where it differs.")
    ] = False,
    json: JsonLines = False,
) -> None:
    """What the rules would have said of the figures as they are now."""
    from runtap_consumers.alerts.backtest import replay
    from runtap_consumers.alerts.rule_file import find_rules
    from runtap_consumers.alerts.rules import make_rules
    from runtap_consumers.alerts.windows import complete_to
    from runtap_consumers.store.engine import open_store

    now_ns = time.time_ns()
    from_ns, to_ns = instant_of(since, settings, now_ns), instant_of(until, settings, now_ns)
    assert from_ns is not None
    to_ns = complete_to(now_ns) if to_ns is None else to_ns
    if from_ns >= to_ns:
        raise InputError(f"the range ends before it begins: --from {since}, --to {until or 'now'}")
    rules = make_rules(find_rules(str(file) if file is not None else settings.alerts, settings.cost_attributes).rules)
    with closing(open_store(settings.database_url)) as store:
        found = replay(store, rules, from_ns, to_ns, now_ns)
    zone = settings.zone()

    def described(said: Any, summary: str = "", how: str = "") -> dict[str, Any]:
        at = format_instant(said.window_to_ns, zone) if said.window_to_ns else None
        facts = {"rule": said.rule, "group": list(said.group), "status": said.status, "window_to": at}
        return {**facts, "summary": summary, **({"how": how} if how else {})}

    if not check:
        rows = [described(said, says) for said, says in found.said]
        printing.print_list(rows, _SAID, "The rules would have said nothing.", as_json=json)
    else:
        says = dict(found.said)
        named = (("missing", found.missing), ("more", found.more), ("revised", found.revised))
        rows = [described(said, says.get(said, ""), how) for how, all_said in named for said in all_said]
        printing.print_list(rows, f"how {_SAID}", "", as_json=json)
        differing = len(found.missing) + len(found.more)
        say(f"{found.equal} equal, {differing} different, {len(found.revised)} revised by late events.", err=json)
    if found.not_replayed and not json:
        say(f"Of the present, without a past to judge: {', '.join(found.not_replayed)}.")
    if check and (found.missing or found.more):
        raise typer.Exit(1)


def _read(settings: ConsumerSettings, since: str | None, until: str | None, service: str | None) -> list[Any]:
    from runtap_consumers.figures.report import check_service, describe_alerts
    from runtap_consumers.store.read.snapshot import open_reader

    now_ns = time.time_ns()
    from_ns, to_ns = instant_of(since, settings, now_ns), instant_of(until, settings, now_ns)
    from_ns = now_ns - DAY_NS if from_ns is None else from_ns
    with open_reader(settings.database_url) as snapshot:
        check_service(snapshot, service)
        # What is raised in this moment is at a time that lies ahead of this machine's clock, maybe.
        return describe_alerts(snapshot, from_ns, now_ns + DAY_NS if to_ns is None else to_ns, service, settings.zone())


def _met(store: Store, rules: list[Rule], now_ns: int) -> Iterator[dict[str, Any]]:
    """What each rule met in the last days."""
    from runtap_consumers.alerts.rule_file import quantity_of
    from runtap_consumers.alerts.snapshot_figures import SnapshotFigures
    from runtap_consumers.figures.quantities import Present, Quantity
    from runtap_consumers.instants import hour_start_ns
    from runtap_consumers.store.read.snapshot import open_snapshot

    to_ns = hour_start_ns(now_ns, store.zone, hours_later=1)
    with open_snapshot(store) as snapshot:
        figures = SnapshotFigures(snapshot, store.zone, Present(now_ns, 0))
        for rule in rules:
            row = _row(rule)
            quantity = quantity_of(rule.settings)
            if isinstance(quantity, Quantity):
                met = figures.sums(rule.settings, quantity, to_ns - _CHECKED_NS, to_ns)
                calls = sum(map(quantity.calls, met.values()))
                note = None if calls else "warning: it met nothing in 7 days: is a name in where or group_by wrong?"
                if calls and rule.step_name == "hour":
                    note = "its window goes on by the hour"
                row |= {"groups": len(met), "calls": calls, "note": note}
            elif rule.projection:
                row |= {"groups": len(figures.errors_since(to_ns - _CHECKED_NS))}
            yield row


def _row(rule: Rule) -> dict[str, Any]:
    from runtap_consumers.alerts.rules.words import title_of

    return {"rule": rule.settings.id, "what": title_of(rule.settings), "groups": None, "calls": None, "note": None}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
