"""The ledger and the dead letters as tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runtap_consumers.cli.printing import Column, open_console, print_table
from runtap_consumers.cli.terminal import print_line

_ROWS_SHOWN = 50


def print_ledger(ledger: dict[str, Any]) -> None:
    """Prints what `runtap_consumers.figures.ledger_report.build_ledger` returned."""
    console = open_console()
    if not ledger["emitters"]:
        console.print("There is nothing yet: no worker has applied an event.")
        return
    print_line(console, f"Complete to {ledger['complete_to'] or 'no known instant'}; sums of {ledger['projection']}:")
    holder = next((row for row in ledger["emitters"] if row["emitter"] == ledger["held_by"]), None)
    if holder is not None and holder["state"] == "silent":
        print_line(
            console,
            f"It waits for emitter {holder['emitter']} ({holder['service'] or 'unknown service'}), last heard "
            f"{holder['last_heard']}: if that process is gone for good, `runtap ledger forget {holder['emitter']}`",
            style="yellow",
        )
    at_least = "at least " if ledger["captured_is_at_least"] else ""
    dropped, lost = sum(ledger["dropped"].values()), ledger["lost"]
    print_line(
        console,
        f"captured {at_least}{ledger['captured']:,} = applied {ledger['applied']:,} + in flight "
        f"{ledger['in_flight']:,} + dropped {dropped:,} + lost {lost:,} + unreadable {ledger['quarantined']:,}",
        style="yellow" if dropped or lost or ledger["quarantined"] else "",
    )
    for kind, what in (("foreign", "records of no emitter"), ("impossible", "events with impossible numbers")):
        if ledger[kind]:
            print_line(console, f"{ledger[kind]:,} {what}, outside of these sums: see `runtap dead-letters list`")
    for shared in ledger["shared_emitters"]:
        processes = ", ".join(f"{one['process_id']} on {one['host']}" for one in shared["processes"])
        print_line(
            console,
            f"Emitter {shared['emitter']} is two processes or more ({processes}): of two events under one number "
            "only the first counts. A snapshot of a running process was restored more than once: see docs/emitter.md",
            style="bold red",
        )
    if ledger["repeats"]:
        print_line(console, f"{ledger['repeats']:,} repeats in the log were dropped.")
    numbers = [Column(name, is_number=True) for name in ("Captured", "Applied", "In flight", "Dropped", "Lost")]
    numbers += [Column("Unreadable", is_number=True), Column("Repeats", is_number=True, is_essential=False)]
    why = Column("Why", is_prose=True)
    services = ([row["service"], row["environment"], *_numbers(row), _why(row)] for row in ledger["services"])
    print_table(console, "By service", [Column("Service"), Column("Environment"), *numbers, why], services)
    emitters = (
        [row["emitter"], row["service"], row["state"], row["last_heard"], *_numbers(row), _why(row)]
        for row in sorted(ledger["emitters"], key=lambda row: row["last_heard"] or "", reverse=True)
    )
    columns = [Column("Emitter", longest=20), Column("Service"), Column("State"), Column("Last heard", longest=19)]
    print_table(console, "By emitter, the one heard last first", [*columns, *numbers, why], emitters, _ROWS_SHOWN)
    projections = (
        [row["projection"], *(f"{row[name]:,}" for name in ("applied", "in_flight", "lost", "quarantined", "repeats"))]
        for row in ledger["projections"]
    )
    columns = [Column(name, is_number=True) for name in ("Applied", "In flight", "Lost", "Unreadable", "Repeats")]
    print_table(console, "By projection", [Column("Projection"), *columns], projections)
    incidents = (
        [row["at"], row["projection"], str(row["partition"]), _happened(row)] for row in reversed(ledger["incidents"])
    )
    columns = [Column("At", longest=19), Column("Projection"), Column("Partition", is_number=True)]
    print_table(console, "What happened to the log", [*columns, Column("What", is_prose=True)], incidents, _ROWS_SHOWN)
    counts = [Column("Events", is_number=True)]
    _print_counts("Times not believed", "Service", counts, ledger["skewed_events"])
    _print_counts("Event types not known to this version", "Type", counts, ledger["unknown_event_types"])


def print_dead_letters(rows: Iterable[dict[str, Any]]) -> None:
    """Prints a list of dead letters."""
    columns = [
        # Partition and offset name a letter to `show` as well, where an id would leave no room for the cause.
        *(Column("Id", is_essential=False), Column("Log time", longest=19), Column("Partition", is_number=True)),
        *(Column("Offset", is_number=True), Column("Bytes", is_number=True)),
        *(Column("Emitter", is_essential=False, longest=12), Column("Cause", is_prose=True)),
    ]
    cells = [
        [
            row["id"],
            row["log_time"],
            *(f"{row[name]:,}" for name in ("partition", "offset", "value_bytes")),
            row["emitter"],
            row["cause"],
        ]
        for row in rows
    ]
    if not cells:
        open_console().print("There are no dead letters.")
    print_table(open_console(), None, columns, cells, len(cells))


def _print_counts(title: str, key: str, numbers: list[Column], counts: dict[str, int]) -> None:
    print_table(open_console(), title, [Column(key), *numbers], ([name, f"{n:,}"] for name, n in counts.items()))


def _numbers(row: dict[str, Any]) -> list[str]:
    at_least = "≥ " if row["captured_is_at_least"] else ""
    counts = [row["captured"], row["applied"], row["in_flight"], sum(row["dropped"].values())]
    counts += [row[name] for name in ("lost", "quarantined", "repeats")]
    return [f"{at_least if place == 0 else ''}{count:,}" for place, count in enumerate(counts)]


def _why(row: dict[str, Any]) -> str:
    reasons = [f"dropped: {reason} {count:,}" for reason, count in row["dropped"].items()]
    reasons += [f"lost: {reason} {count:,}" for reason, count in row["lost_by_reason"].items()]
    return ", ".join(reasons)


def _happened(incident: dict[str, Any]) -> str:
    if incident["kind"] == "retention":
        count = incident["last_offset"] - incident["first_offset"] + 1
        return (
            f"retention deleted offsets {incident['first_offset']} to {incident['last_offset']} "
            f"({count:,}) before they were read"
        )
    if incident["kind"] == "gone":
        return f"the topic has no such partition any more; it was read up to offset {incident['last_offset']}"
    return f"the topic was made again; the log before it was read up to offset {incident['last_offset']}"
