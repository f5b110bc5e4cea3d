"""What a rebuild would change, as a table for people."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from runtap_consumers.cli.printing import Column, open_console, print_table
from runtap_consumers.cli.terminal import print_line
from runtap_consumers.correct.rebuild import FigureDifference
from runtap_consumers.instants import local_time


def print_differences(projection: str, differences: list[FigureDifference], zone: ZoneInfo) -> None:
    """Prints the sums that a rebuild would change."""
    console = open_console()
    if not differences:
        print_line(console, f"A rebuild of {projection} would change nothing.")
        return
    columns = [Column("Table"), Column("Day"), Column("Sum of")]
    columns += [Column(name, is_number=True) for name in ("Now", "Rebuilt", "Difference")]
    cells = [
        [
            one.table,
            f"{local_time(one.day_ns, zone):%Y-%m-%d}" if one.day_ns else None,
            one.measure,
            *(f"{count:,}" for count in (one.before, one.after)),
            f"{one.after - one.before:+,}",
        ]
        for one in differences
    ]
    print_table(console, f"What a rebuild of {projection} would change", columns, cells, len(cells))
