"""How long partitions stood still when their worker was killed."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg

_SAMPLE_SECONDS = 0.1
# A partition that nobody wrote to for so long before a kill need not move after it.
_BUSY_SECONDS = 5.0
# What a worker committed just before its end may be seen so much later.
_AFTERMATH_SECONDS = 0.3
_SLOWEST = 5


class Takeovers:
    """Watches every partition's position in the store, in a thread of its own, and remembers kills."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._moves: dict[int, list[float]] = defaultdict(list)
        self._kills: list[tuple[float, list[int]]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="takeovers", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        before: dict[int, int] = {}
        query = "SELECT partition, min(next_offset) FROM positions GROUP BY partition"
        while not self._is_over.wait(_SAMPLE_SECONDS):
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    while not self._is_over.wait(_SAMPLE_SECONDS):
                        now: dict[int, int] = dict(connection.execute(query).fetchall())
                        seen_at = time.monotonic()
                        for partition, offset in now.items():
                            if offset != before.get(partition):
                                self._moves[partition].append(seen_at)
                        before = now
            except psycopg.Error:
                # Not there yet, or a fault's victim.
                continue

    def note_kill(self, log: Path, log_start: int) -> None:
        """Notes that the worker which writes this log, since `log_start`, has just been killed."""
        self._kills.append((time.monotonic(), _partitions(log, log_start)))

    def close(self) -> None:
        """Ends the thread."""
        self._is_over.set()
        self._thread.join(10)

    def figures(self, bar_seconds: float, appended: dict[int, list[float]]) -> dict[str, Any]:
        """From a kill to the next commit of each busy partition that the victim had, in seconds; and when, as the
        workers' logs write it, those were killed whose partitions stood still longest.

        `appended`: when records were, by partition, Unix seconds: where the next one came long after a kill, since an
        emitter ended as well, time counts from it.
        """
        owners = [
            (at, partition)
            for at, partitions in self._kills
            for partition in partitions
            if any(at - _BUSY_SECONDS < moved <= at + _AFTERMATH_SECONDS for moved in self._moves[partition])
        ]
        found, slow = [], []
        ahead = time.time() - time.monotonic()
        for at, partition in owners:
            written = next((second - ahead for second in appended[partition] if second - ahead > at), None)
            moved = next((moved for moved in self._moves[partition] if moved > at + _AFTERMATH_SECONDS), None)
            if moved is None and written is None:
                continue
            until = time.monotonic() if moved is None else moved
            found.append(until - (at if written is None or written > until else written))
            killed = datetime.fromtimestamp(ahead + at, UTC)
            slow.append((round(found[-1], 1), partition, f"{killed:%H:%M:%S.%f}"))
        if len(found) < 2:
            return {"kills": len(self._kills), "takeovers": len(found)}
        return {
            "kills": len(self._kills),
            "kills_of_owners": sum(1 for _, partitions in self._kills if partitions),
            "takeovers": len(found),
            "p50_seconds": round(median(found), 1),
            "p95_seconds": round(quantiles(found, n=20)[-1], 1),
            "max_seconds": round(max(found), 1),
            "bar_seconds": bar_seconds,
            "above_bar": sum(seconds > bar_seconds for seconds in found),
            "slowest": sorted(slow, reverse=True)[:_SLOWEST],
        }


def _partitions(log: Path, log_start: int) -> list[int]:
    """Those that a worker said last that it has."""
    with log.open("rb") as file:
        file.seek(log_start)
        lines = [line for line in file.read().splitlines() if b'"partitions_assigned"' in line]
    partitions: list[int] = json.loads(lines[-1])["partitions"] if lines else []
    return partitions
