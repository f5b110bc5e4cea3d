"""Prints the lines of Python in each room, beside the most that it may have: `make size`.

A room's lines are its own and those of its commands; migrations do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKERS = "consumers/runtap_consumers"
# What belongs to a room, as patterns; the first room that a file fits has it.
ROOMS = {
    "demo": (1_800, ["demo/**/*.py"]),
    "collector: spool": (None, ["collector/runtap_collector/spool/*.py"]),
    "correct": (1_050, [f"{WORKERS}/correct/**/*.py", f"{WORKERS}/cli/*re[bp]*.py"]),
    "pricing": (
        1_400,
        [f"{WORKERS}/pricing/**/*.py", f"{WORKERS}/cli/*prices.py", f"{WORKERS}/store/read/unmatched.py"],
    ),
    "evaluate": (
        950,
        [
            *(f"{WORKERS}/evaluate/**/*.py", f"{WORKERS}/cli/evaluate.py", f"{WORKERS}/cli/dataset.py"),
            # What it asks of the collector; they import each other nowhere.
            "collector/runtap_collector/watch.py",
        ],
    ),
    "notify": (450, [f"{WORKERS}/notify/*.py", f"{WORKERS}/alerts/channels.py", f"{WORKERS}/alerts/subscription.py"]),
    "forward": (550, [f"{WORKERS}/forward/*.py", f"{WORKERS}/cli/forward.py"]),
    "alerts": (None, [f"{WORKERS}/alerts/**/*.py"]),
    "serve": (900, [f"{WORKERS}/serve/**/*.py"]),
    "cli": (1_400, [f"{WORKERS}/cli/**/*.py", f"{WORKERS}/__main__.py"]),
    "figures": (1_100, [f"{WORKERS}/figures/**/*.py"]),
    "store/read": (None, [f"{WORKERS}/store/read/**/*.py"]),
}
CORE = {
    "schemas": ["schemas/**/*.py"],
    "collector: face": ["collector/runtap_collector/*.py"],
    "collector: capture": ["collector/runtap_collector/capture/*.py"],
    "collector: send": ["collector/runtap_collector/send/*.py"],
    "kafka": [f"{WORKERS}/kafka/*.py"],
    "worker": [f"{WORKERS}/worker/*.py"],
    "projections": [f"{WORKERS}/projections/*.py"],
    "store": [f"{WORKERS}/store/*.py"],
    "workers: face": [f"{WORKERS}/*.py"],
}
CORE_BUDGET, BUDGET, MODULE_BUDGET = 9_300, 18_700, 400


def main() -> int:
    """Prints the table. 1: something is over its budget."""
    taken: set[Path] = set()
    over: list[str] = []

    def lines_of(patterns: list[str]) -> int:
        found = {path for pattern in patterns for path in ROOT.glob(pattern) if "migrations" not in path.parts} - taken
        taken.update(found)
        lengths = {path: len(path.read_text().splitlines()) for path in found}
        over.extend(f"{path.relative_to(ROOT)} {count}" for path, count in lengths.items() if count > MODULE_BUDGET)
        return sum(lengths.values())

    def show(name: str, lines: int, budget: int | None) -> None:
        if budget is not None and lines > budget:
            over.append(f"{name} {lines}")
        print(f"{name:22}{lines:7,}{'' if budget is None else f'{budget:8,}'}")  # noqa: T201

    side = {name: (lines_of(patterns), budget) for name, (budget, patterns) in ROOMS.items()}
    core = {name: lines_of(patterns) for name, patterns in CORE.items()}
    for name, lines in core.items():
        show(f"  {name}", lines, None)
    show("the core", sum(core.values()), CORE_BUDGET)
    for name, (lines, budget) in side.items():
        show(name, lines, budget)
    show("all", sum(core.values()) + sum(lines for lines, _ in side.values()), BUDGET)
    for line in over:
        print(f"over: {line}")  # noqa: T201
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
