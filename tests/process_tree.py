"""Which processes a process has started, and whether they are gone. Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """State and parent of a process; `None` when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1])


def descendants(root: int) -> set[int]:
    """Ids of all processes below one."""
    stats = {int(name): state_and_parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found, front = set[int](), {root}
    while front:
        front = {pid for pid, stat in stats.items() if stat is not None and stat[1] in front}
        found |= front
    return found


def are_gone(pids: set[int]) -> bool:
    """Whether none runs; one that nobody has waited for yet is over all the same."""
    return all(stat is None or stat[0] == "Z" for stat in map(state_and_parent, pids))


def command_lines(pids: set[int]) -> str:
    """The command lines of those that run, joined."""
    return " ".join(
        Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids if state_and_parent(pid)
    )


def wait_until_gone(pids: set[int]) -> None:
    """Waits, and fails when one is still there."""
    deadline = time.monotonic() + 15
    while not are_gone(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert are_gone(pids), command_lines(pids)
