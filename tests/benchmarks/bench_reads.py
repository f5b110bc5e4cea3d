"""How long the questions of a page take on a month of traffic: `runtap serve`, asked over HTTP, without any cache.

A store of 30 days (`month_store`) on each database, then every question some thirty times in mixed order, with
services, users, models, names, tags, metadata and days drawn by a seeded chance, now and then of what there is none of.
A bar beside each: 300 ms for figures, traces, sessions and the runs of a day, 1.5 s for those of seven days, 100 ms for
any run's id or beginning of it; p95. What is cut off in time has a cursor, and is counted under `parts`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from measurement import print_machine
from month_store import COMPONENTS, DAYS, KEPT_DAYS, MODELS, SERVICES, TAGS, TEAMS, USERS, copy_store, fill_store
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from worker_latency import percentile
from worker_setting import KINDS, Stores, bytes_by_table, postgres

from runtap_consumers.store.engine import open_store
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS

_FIGURES_MS, _WEEK_MS, _ID_MS = 300.0, 1_500.0, 100.0
_RANGES = {"a day": DAY_NS, "7 days": 7 * DAY_NS, "30 days": DAYS * DAY_NS}


@dataclass
class Sampled:
    """Runs that there are, of the days that are kept, and where time ends."""

    dice: random.Random
    until_ns: int
    runs: list[Any]

    def run(self) -> Any:
        """One of them."""
        return self.dice.choice(self.runs)

    def span(self, length_ns: int, within_ns: int) -> dict[str, Any]:
        """A range of a length that ends somewhere within the last time."""
        room = max(within_ns - length_ns, 0) // MINUTE_NS
        until_ns = self.until_ns - self.dice.randrange(room + 1) * MINUTE_NS
        return {"since": _instant(until_ns - length_ns), "until": _instant(until_ns)}


def _instant(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).isoformat()


# What is asked, with parameters.
Ask = Callable[[Sampled], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Question:
    """What is asked, and within how many milliseconds it should be answered."""

    name: str
    bar_ms: float
    ask: Ask


def _ranged(name: str, path: str, length: str, draw: Callable[[Sampled], dict[str, Any]]) -> Question:
    def ask(sampled: Sampled) -> tuple[str, dict[str, Any]]:
        return path, {**sampled.span(_RANGES[length], DAYS * DAY_NS), **draw(sampled)}

    return Question(f"{name}, {length}", _FIGURES_MS, ask)


def _figures() -> Iterator[Question]:
    nothing: Callable[[Sampled], dict[str, Any]] = lambda _: {}  # noqa: E731
    for length in _RANGES:
        yield _ranged("report", "report", length, nothing)
        yield _ranged("report of a service", "report", length, lambda of: {"service": of.dice.choice(SERVICES)})
        yield _ranged("components", "components", length, nothing)
        yield _ranged("errors", "errors", length, nothing)
        yield _ranged("overview", "overview", length, nothing)
        yield _ranged("why costs changed", "changes", length, nothing)
        for by in ("model", "provider", "service", "environment", "root", "team", "user"):
            yield _ranged(f"costs by {by}", "costs", length, lambda _, by=by: {"by": by})  # type: ignore[misc]
        crosses = (("user", "model"), ("root", "service"), ("team", "model"), ("day", "model"), ("day", "service"))
        for cross in crosses:
            yield _ranged(f"costs by {' and '.join(cross)}", "costs", length, lambda _, by=cross: {"by": list(by)})  # type: ignore[misc]
        yield _ranged(
            "costs by model of a service",
            "costs",
            length,
            lambda of: {"by": "model", "service": of.dice.choice(SERVICES)},
        )
        yield _ranged(
            "series by day",
            "series",
            length,
            lambda of: {"metric": of.dice.choice(("cost_usd", "calls")), "by": "model", "grain": "day"},
        )
        if length != "30 days":
            yield _ranged("series by hour", "series", length, lambda _: {"by": "model", "grain": "hour"})
            yield _ranged("costs by hour", "costs", length, lambda _: {"by": "hour"})
    for path in ("ledger", "workers", "alerts"):
        yield Question(path, _FIGURES_MS, lambda _, path=path: (path, {}))  # type: ignore[misc]
    yield Question("/metrics", _FIGURES_MS, lambda _: ("/metrics", {}))


def _sessions() -> Iterator[Question]:
    yield Question("sessions, newest", _FIGURES_MS, lambda _: ("sessions", {}))
    for length in _RANGES:
        yield _ranged("sessions", "sessions", length, lambda _: {})
        yield _ranged("sessions of a service", "sessions", length, lambda of: {"service": of.dice.choice(SERVICES)})
        yield _ranged("sessions of a user", "sessions", length, lambda of: {"user": _user(of)})
    yield Question("a session", _FIGURES_MS, lambda of: (f"sessions/{of.run().session_id}", {}))
    yield Question("a trace", _FIGURES_MS, lambda of: (f"traces/{of.run().trace_id}", {}))
    yield Question("a run's id", _ID_MS, lambda of: (f"traces/{of.run().run_id}", {}))
    # The milliseconds of an id, and a little of its chance.
    yield Question("the beginning of a run's id", _ID_MS, lambda of: (f"traces/{of.run().run_id[:20]}", {}))
    yield Question("an id that is not there", _ID_MS, lambda of: (f"traces/{of.run().run_id[:-4]}zzzz", {}))


def _user(of: Sampled) -> str:
    return f"user-{of.dice.randrange(USERS):05}"


_FILTERS: dict[str, Callable[[Sampled], dict[str, Any]]] = {
    "all": lambda _: {},
    "service": lambda of: {"service": of.dice.choice(SERVICES)},
    "user": lambda of: {"user": _user(of)},
    "user that is not there": lambda _: {"user": "nobody"},
    "session": lambda of: {"session": of.run().session_id},
    "trace": lambda of: {"trace": of.run().trace_id},
    "type": lambda of: {"type": of.dice.choice(("llm", "chain", "tool", "retriever"))},
    "name": lambda of: {"name": of.dice.choice(COMPONENTS[SERVICES[0]]).name},
    "name that is not there": lambda _: {"name": "nothing"},
    "model": lambda of: {"model": of.dice.choice(MODELS)[1]},
    "model as it was asked for": lambda of: {"model": f"{of.dice.choice(MODELS[::5])[1]}-alias"},
    "model that is not there": lambda _: {"model": "none"},
    "status": lambda of: {"status": of.dice.choice(("ok", "error", "cancelled", "open", "abandoned"))},
    "status that is not there": lambda _: {"status": "interrupted"},
    "tag": lambda of: {"tag": of.dice.choice(TAGS)},
    "tag that is not there": lambda _: {"tag": "none"},
    "metadata": lambda of: {"metadata": f"team={of.dice.choice(TEAMS)}"},
    "metadata of one trace": lambda of: {"metadata": f"order={json.loads(of.run().metadata)['order']}"},
    "model, status and user": lambda of: {
        "model": of.dice.choice(MODELS)[1],
        "status": "error",
        "user": _user(of),
    },
    "service, name and tag": lambda of: {
        "service": of.dice.choice(SERVICES),
        "name": "tool-1",
        "tag": of.dice.choice(TAGS),
    },
}


def _runs() -> Iterator[Question]:
    for length_ns, length, bar_ms in ((DAY_NS, "a day", _FIGURES_MS), (KEPT_DAYS * DAY_NS, "7 days", _WEEK_MS)):
        for name, draw in _FILTERS.items():

            def ask(of: Sampled, draw: Any = draw, length_ns: int = length_ns) -> tuple[str, dict[str, Any]]:
                return "runs", {**of.span(length_ns, KEPT_DAYS * DAY_NS), **draw(of)}

            yield Question(f"runs by {name}, {length}", bar_ms, ask)
        for by in ("name", "tag", "metadata.order"):

            def ask_costs(of: Sampled, by: str = by, length_ns: int = length_ns) -> tuple[str, dict[str, Any]]:
                return "costs", {**of.span(length_ns, KEPT_DAYS * DAY_NS), "by": by}

            yield Question(f"costs by {by}, of runs, {length}", bar_ms, ask_costs)


@dataclass
class Asked:
    """How long a question took, milliseconds, and how often the answer was but a part, or none."""

    took: list[float] = field(default_factory=list)
    parts: int = 0
    refused: int = 0
    size: int = 0


@contextmanager
def server(url: str, folder: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection to a `runtap serve` of the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")},
        "RUNTAP_COST_BY": "metadata.team",
        "RUNTAP_DATABASE_URL": url,
    }
    command = [sys.executable, "-m", "runtap_consumers", "serve", "--port", str(port)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        for _ in range(300):
            try:
                if ask(connection, "/readyz", {})[0] == 200:
                    break
            except OSError:
                connection.close()
            if process.poll() is not None:
                raise SystemExit(f"runtap serve ended:\n{(folder / 'serve.log').read_text()[-3_000:]}")
            time.sleep(0.1)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(30)


def ask(connection: http.client.HTTPConnection, path: str, parameters: dict[str, Any]) -> tuple[int, bytes, float]:
    """Status, answer, and the milliseconds from question to the answer's last byte."""
    whole = quote(path if path.startswith("/") else f"/api/v1/{path}")
    began = time.perf_counter()
    connection.request("GET", f"{whole}?{urlencode(parameters, doseq=True)}")
    answer = connection.getresponse()
    found = answer.read()
    return answer.status, found, (time.perf_counter() - began) * 1e3


def sample(url: str, until_ns: int, seed: int) -> Sampled:
    """Some of the runs that the store holds."""
    dice = random.Random(seed)
    statement = text(
        "SELECT run_id, trace_id, session_id, metadata FROM runs "
        "WHERE started_at_ns >= :at ORDER BY started_at_ns LIMIT 1"
    )
    with open_store(url) as store, store.read() as connection:
        instants = [until_ns - HOUR_NS - dice.randrange(KEPT_DAYS * DAY_NS - HOUR_NS) for _ in range(500)]
        runs = [connection.execute(statement, {"at": at_ns}).one() for at_ns in instants]
    return Sampled(dice, until_ns, runs)


def measure(connection: http.client.HTTPConnection, sampled: Sampled, askings: int, only: str) -> dict[Question, Asked]:
    """Asks all questions so many times, in mixed order."""
    questions = [one for one in (*_figures(), *_sessions(), *_runs()) if only in one.name]
    order = [question for question in questions for _ in range(askings)]
    sampled.dice.shuffle(order)
    found: dict[Question, Asked] = defaultdict(Asked)
    for question in order:
        status, answer, took = ask(connection, *question.ask(sampled))
        asked = found[question]
        asked.took.append(took)
        asked.size = max(asked.size, len(answer))
        asked.refused += status not in (200, 404)
        asked.parts += b'"complete":false' in answer
    return {question: found[question] for question in questions}


def show(console: Console, title: str, found: dict[Question, Asked]) -> None:
    """Prints a line a question."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("question")
    for heading in ("median", "p95", "min", "max", "bar", "", "parts", "refused", "kB"):
        table.add_column(heading, justify="right")
    for question, asked in found.items():
        latest = percentile(asked.took, 95)
        took = (percentile(asked.took, 50), latest, min(asked.took), max(asked.took), question.bar_ms)
        table.add_row(
            question.name,
            *(f"{each:,.0f}" for each in took),
            "" if latest <= question.bar_ms else "over",
            *(f"{count:,}" if count else "" for count in (asked.parts, asked.refused)),
            f"{asked.size / 1e3:,.0f}",
        )
    console.print(table)
    over = [question.name for question, asked in found.items() if percentile(asked.took, 95) > question.bar_ms]
    console.print(f"{len(found) - len(over)} of {len(found)} within their bars\n")


def main() -> None:
    """Makes the stores and asks."""
    parser = argparse.ArgumentParser(description="milliseconds of the questions that a page asks")
    parser.add_argument("--runs", type=int, default=2_000_000, help="of the last seven days")
    parser.add_argument("--askings", type=int, default=30, help="of each question")
    parser.add_argument("--stores", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="questions with this in their names")
    parser.add_argument("--at", metavar="URL", help="ask a store that an earlier round filled and kept")
    parser.add_argument("--keep", metavar="FOLDER", help="where SQLite's store stays for `--at`")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=160)
    print_machine(console, "runtap", "SQLAlchemy", "psycopg", "starlette", "uvicorn", "orjson")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runtap-bench-")))
        urls = {arguments.at: arguments.at} if arguments.at else {}
        if not urls:
            made = Stores(Path(arguments.keep or folder), stack.enter_context(postgres()).url)
            urls = {kind: made.make(kind) for kind in KINDS}
            _fill(console, urls, arguments)
        for kind in arguments.stores if not arguments.at else urls:
            url = urls[kind]
            with open_store(url) as store, store.read() as connection:
                newest = connection.execute(text("SELECT max(log_time_ns) FROM positions")).scalar_one()
                console.print(f"{kind}: {store.database}")
            with server(url, folder) as connection:
                first = ask(connection, "costs", {"by": "model"})[2]
                console.print(f"the first question after the start: {first:,.0f} ms")
                found = measure(connection, sample(url, newest, arguments.seed), arguments.askings, arguments.only)
            show(console, f"\n{kind}, milliseconds, {arguments.askings} askings each", found)


def _fill(console: Console, urls: dict[str, str], arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    count = fill_store(urls["SQLite"], arguments.runs, time.time_ns() // (5 * MINUTE_NS) * 5 * MINUTE_NS)
    console.print(f"{count:,} events in {time.perf_counter() - began:,.0f} s")
    if "PostgreSQL" in arguments.stores:
        copy_store(urls["SQLite"], urls["PostgreSQL"])
    for kind in arguments.stores:
        sizes = bytes_by_table(urls[kind])
        largest = ", ".join(
            f"{name} {size / 1e6:,.0f}" for name, size in sorted(sizes.items(), key=lambda one: -one[1])[:8]
        )
        console.print(f"{kind}: {sum(sizes.values()) / 1e6:,.0f} MB: {largest}")


if __name__ == "__main__":
    main()
