"""Compares what was written down with the retained log, and settles what the store has to show. Imports nothing of
runtap.

    books of the emitters + the model server's answers = the log, each event once

Only a killed service may have taken something along: what it had written down since its last mark `safe`. What the
store has to show of it is what the log retains; every other service is held to what was written down.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Fact = tuple[Any, ...]


@dataclass
class Captured:
    """All that was written down; `unsure` of it may have ended with a killed process."""

    facts: Counter[Fact] = field(default_factory=Counter)
    unsure: Counter[Fact] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)

    def add_book(self, book: Path) -> None:
        """Adds what an emitter wrote."""
        since = Counter[Fact]()
        for entry in _read(book):
            if isinstance(entry, tuple):
                self.facts[entry] += 1
                since[entry] += 1
                continue
            self.marks.update({entry["mark"]: 1, "undelivered": entry.get("waiting", 0) + entry.get("dropped", 0)})
            if entry["mark"] == "begun":
                self.unsure.update(since)
            since.clear()
        self.unsure.update(since)

    def add_answers(self, answers: Path) -> None:
        """Adds the calls that the model server answered, whose sessions are in a book."""
        whose = {fact[1]: fact[:3] for fact in self.facts}
        for answer in _read(answers):
            assert isinstance(answer, dict), answer
            used = answer["usage"]
            cached, output = used["prompt_tokens_details"]["cached_tokens"], used["completion_tokens"]
            call = ("llm", "ask", answer["model"], "ok", used["prompt_tokens"], cached, output, True)
            self.facts[*whose[answer["session"]], *call] += 1


def _read(path: Path) -> Iterator[Fact | dict[str, Any]]:
    with path.open() as file:
        for entry in map(json.loads, file):
            if isinstance(entry, list):
                # Millions of lines, and few texts in them.
                yield tuple(sys.intern(value) if isinstance(value, str) else value for value in entry)
            else:
                yield entry


def settle(books: Sequence[Path], answers: Path, log: Path, settled: Path) -> tuple[list[str], dict[str, Any]]:
    """Writes what the store has to show: facts with how many there are of each, and last the rest.

    Returns:
        Each difference between the books and the log, and what there was.
    """
    captured, logged, totals = Captured(), Counter[Fact](), dict[str, Any]()
    for book in books:
        captured.add_book(book)
    captured.add_answers(answers)
    for entry in _read(log):
        if isinstance(entry, tuple):
            logged[entry] += 1
        else:
            totals = entry
    killed = {fact[0] for fact in captured.unsure}
    differences = [f"not in the log: {fact}" for fact in captured.facts - logged - captured.unsure]
    differences += [f"in no book: {fact}" for fact in logged - captured.facts]
    with settled.open("w") as file:
        for facts, is_of_killed in ((captured.facts, False), (logged, True)):
            chosen: Iterable[tuple[Fact, int]] = ((f, n) for f, n in facts.items() if (f[0] in killed) == is_of_killed)
            file.writelines(json.dumps([*fact, count]) + "\n" for fact, count in chosen)
        file.write(json.dumps({"closed": captured.marks["closed"], "open": totals["open_runs"]}) + "\n")
    return differences, {
        "emitter_lives": captured.marks["begun"],
        "safe_marks": captured.marks["safe"],
        "undelivered": captured.marks["undelivered"],
        "unsure": captured.unsure.total(),
        "taken_along": (captured.facts - logged).total(),
        **totals,
    }
