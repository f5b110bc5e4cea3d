"""A store as it stands after a month of traffic: 8 services, 200 components, 50 models, 12 partitions.

Frames go through the worker's own partitions, one commit after the other, without Kafka, into SQLite; PostgreSQL gets
the same rows by COPY, since a fill takes a quarter of an hour. The last seven days, those of which single runs are
kept, hold as many runs as are asked for; the days before have but one run an hour, component and partition, which fills
every row of a rollup that seven times as many would.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import psycopg
from sqlalchemy import make_url, select

from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.engine import open_store
from runtap_consumers.store.retention import passed_hours
from runtap_consumers.store.statements import column_types, copy_statement
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import (
    EmitterReported,
    Event,
    RunEnded,
    RunError,
    RunStarted,
    SessionStarted,
    Usage,
    encode_event,
    encode_frame,
)

DAYS, KEPT_DAYS, PARTITIONS = 30, 7, 12
SESSIONS, USERS = 100_000, 20_000
SERVICES = tuple(f"service-{number}" for number in range(8))
TEAMS = tuple(f"team-{number}" for number in range(12))
TAGS = tuple(f"tag-{number}" for number in range(30))
_FRAME_NS = 5 * MINUTE_NS
# A process lives for half a day, as where a team deploys twice a day.
_LIFE_HOURS = 12
_COMMIT_EVENTS = 10_000
_RUNS_A_TRACE = 7
# A trace of a thousand runs, now and then.
_LARGE_ONE_IN, _LARGE = 20_000, 1_000

_PRICED = {
    "openai": "gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-4.1-nano gpt-5 gpt-5-mini gpt-5-nano o1 o3 o3-mini o4-mini "
    "gpt-4-turbo gpt-3.5-turbo",
    "anthropic": "claude-3-haiku-20240307 claude-3-5-haiku-20241022 claude-3-7-sonnet-20250219 "
    "claude-sonnet-4-20250514 claude-opus-4-20250514 claude-sonnet-4-5-20250929 "
    "claude-opus-4-1-20250805 claude-haiku-4-5-20251001",
    "google": "gemini-1.5-flash gemini-1.5-pro gemini-2.0-flash gemini-2.0-flash-lite gemini-2.5-flash gemini-2.5-pro "
    "gemini-2.5-flash-lite",
    "mistral": "mistral-large-latest mistral-small-latest codestral-latest ministral-8b-latest pixtral-12b",
    "deepseek": "deepseek-chat deepseek-reasoner",
    "groq": "llama-3.3-70b-versatile llama-3.1-8b-instant gemma2-9b-it",
    # Nobody knows their price.
    "house": " ".join(f"house-{number}" for number in range(11)),
}
MODELS = tuple((provider, name) for provider, names in _PRICED.items() for name in names.split())


class Component(NamedTuple):
    """What runs count under. `model`: its place among `MODELS`, of model calls."""

    run_type: str
    name: str
    model: int | None = None


def _components_of(number: int) -> tuple[Component, ...]:
    """The 25 components of a service; the first four are roots of traces."""
    calls = [Component("llm", "ChatModel", (number * 6 + place) % len(MODELS)) for place in range(10)]
    chains = [Component("chain", f"chain-{place}") for place in range(7)]
    tools = [Component("tool", f"tool-{place}") for place in range(6)]
    return (*chains, *calls, *tools, Component("retriever", "documents"), Component("retriever", "tickets"))


COMPONENTS = {service: _components_of(number) for number, service in enumerate(SERVICES)}
_ROOTS = 4


@dataclass
class _Record:
    """A record as the worker's Kafka client hands it out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class _Lane:
    """The emitters of one partition, one after the other, and the records that wait for a commit."""

    def __init__(self, partition: int) -> None:
        self._partition, self._lives, self._offset, self._began_ns = partition, 0, 0, 0
        self.records: list[_Record] = []
        self.waiting = 0
        self._begin()

    def _begin(self) -> None:
        self._lives += 1
        self._birth, self._number, self._reports = f"{self._partition:08x}{self._lives:024x}", 0, 0

    def append(self, events: list[Event], at_ns: int, dice: random.Random) -> None:
        """Adds a frame of what was captured up to an instant, with a report at its end.

        Reports come every ten seconds, here only while others watch whether the emitters before have fallen silent.
        """
        if not self._number:
            self._began_ns = at_ns - _FRAME_NS
            for early_ns in range(self._began_ns + 10 * SECOND_NS, at_ns, 10 * SECOND_NS):
                self._add([self._report(early_ns, closing=False)], early_ns)
        is_last = at_ns - self._began_ns > _LIFE_HOURS * HOUR_NS
        # One of ten is killed.
        self._add([*events, self._report(at_ns, closing=is_last and dice.random() < 0.9)], at_ns)
        if is_last:
            self._begin()

    def _report(self, at_ns: int, *, closing: bool) -> EmitterReported:
        self._reports += 1
        return EmitterReported(
            at_ns=at_ns,
            report_id=f"{self._birth[:16]}-{self._reports}",
            previous_report_id=f"{self._birth[:16]}-{self._reports - 1}" if self._reports > 1 else None,
            service=SERVICES[self._partition % len(SERVICES)],
            environment="production",
            host=f"host-{self._partition}",
            process_id=self._lives,
            runtap_version="0",
            started_at_ns=self._began_ns,
            closing=closing,
        )

    def _add(self, events: list[Event], at_ns: int) -> None:
        lines = [encode_event(event) for event in events]
        value = encode_frame(self._birth, self._number + 1, at_ns, lines)
        self.records.append(_Record(self._offset, at_ns // 1_000_000, None, value))
        self._offset += 1
        self._number += len(lines)
        self.waiting += len(lines)


class _Traffic:
    """Who calls what, by a seeded chance."""

    def __init__(self, runs: int, until_ns: int) -> None:
        self._dice = random.Random(16)
        self._until_ns = until_ns
        self._begin_ns = until_ns - DAYS * DAY_NS
        self._dense_ns = until_ns - KEPT_DAYS * DAY_NS
        self._traces = runs / (KEPT_DAYS * DAY_NS / _FRAME_NS) / PARTITIONS / _RUNS_A_TRACE
        self._sessions = 0

    def frames(self) -> Iterator[tuple[int, int, list[Event]]]:
        """Partition, end of five minutes, and what was captured in them."""
        at_ns, place = self._begin_ns, 0
        while at_ns < self._until_ns:
            at_ns += _FRAME_NS
            for partition in range(PARTITIONS):
                events = list(self._captured(partition, at_ns, place))
                events.sort(key=lambda event: event.at_ns)
                yield partition, at_ns, events
            place += 1

    def _captured(self, partition: int, to_ns: int, place: int) -> Iterator[Event]:
        dice = self._dice
        # All sessions begin once, one after the other.
        due = (to_ns - self._begin_ns) * SESSIONS // (DAYS * DAY_NS)
        if partition == PARTITIONS - 1:
            for number in range(self._sessions, due):
                yield SessionStarted(at_ns=to_ns - _FRAME_NS, session_id=_session(number), **_owner(number))
            self._sessions = due
        if to_ns <= self._dense_ns:
            # 8 of the 12 frames of an hour have a trace each, of all components of a service.
            if (place + partition) % 12 < len(SERVICES):
                yield from self._trace(to_ns, due, SERVICES[(place + partition) % 12], 25)
            return
        for _ in range(int(self._traces) + (dice.random() < self._traces % 1)):
            size = _LARGE if dice.randrange(_LARGE_ONE_IN) == 0 else dice.randrange(3, 2 * _RUNS_A_TRACE - 2)
            yield from self._trace(to_ns, due, None, size)

    def _trace(self, to_ns: int, due: int, service: str | None, size: int) -> Iterator[Event]:
        dice = self._dice
        # Of those that began in the last hours.
        session = max(due - 1 - int(dice.expovariate(1 / 300)), 0)
        owner = _owner(session)
        if service is not None:
            owner["service"] = service
        components = COMPONENTS[owner["service"]]
        root = components[0] if service is not None else components[dice.randrange(_ROOTS)]
        steps = components[1:] if service is not None else dice.choices(components[_ROOTS:], k=size - 1)
        durations = [min(int(dice.lognormvariate(19.5, 1)), 60 * SECOND_NS) for _ in steps]
        # Clocks are right: nothing ends after its frame was sent.
        began_ns = to_ns - sum(durations) - dice.randrange(_FRAME_NS)
        trace_id = _run_id(dice, began_ns)
        facts = {
            **owner,
            "trace_id": trace_id,
            "session_id": _session(session),
            "root_name": root.name,
            "tags": [TAGS[dice.randrange(len(TAGS))], "web"],
            "metadata": {"team": TEAMS[session % len(TEAMS)], "order": f"order-{dice.randrange(10**7)}"},
        }
        if dice.randrange(1_000) == 0:
            # It never ends.
            named = {name: value for name, value in facts.items() if name not in ("root_name", "tags", "metadata")}
            yield RunStarted(at_ns=began_ns, run_id=trace_id, run_type="chain", name=root.name, is_root=True, **named)
            return
        at_ns, failed = began_ns, False
        for step, duration_ns in zip(steps, durations, strict=True):
            is_error = step.run_type in ("llm", "tool") and dice.random() < 0.02
            failed |= is_error
            yield self._run(step, _run_id(dice, at_ns), trace_id, at_ns, duration_ns, is_error, facts)
            at_ns += duration_ns
        yield self._run(root, trace_id, None, began_ns, at_ns - began_ns, failed and dice.random() < 0.3, facts)

    def _run(
        self,
        component: Component,
        run_id: str,
        parent: str | None,
        began_ns: int,
        duration_ns: int,
        is_error: bool,
        facts: dict[str, Any],
    ) -> RunEnded:
        is_cancelled = not is_error and self._dice.random() < 0.002
        return RunEnded(
            at_ns=began_ns + duration_ns,
            run_id=run_id,
            parent_run_id=parent,
            is_root=parent is None,
            run_type=component.run_type,
            name=component.name,
            status="error" if is_error else "cancelled" if is_cancelled else "ok",
            started_at_ns=began_ns,
            duration_ns=duration_ns,
            error=self._error(component) if is_error else None,
            **(self._call(component.model, is_error) if component.model is not None else {}),
            **facts,
        )

    def _error(self, component: Component) -> RunError:
        number = self._dice.randrange(5)
        return RunError(
            type=f"Error{number}",
            category="rate_limit" if number == 0 else "tool",
            fingerprint=f"{component.name}-{number}",
            origin=component.run_type != "chain",
            status_code=429 if number == 0 else None,
        )

    def _call(self, model: int, is_error: bool) -> dict[str, Any]:
        provider, name = MODELS[model]
        # Every fifth is asked for by another name than it answers by.
        asked = {"provider": provider, "request_model": f"{name}-alias" if model % 5 == 0 else name}
        if is_error:
            return asked
        dice = self._dice
        size = int(dice.lognormvariate(7.5, 1.2))
        usage = Usage(
            input_tokens=size,
            output_tokens=dice.randrange(900),
            cache_read_tokens=size // 2 if dice.random() < 0.4 else 0,
        )
        answered = {"model": name, "usage": usage, "usage_source": "response", "finish_reason": "stop"}
        content = {"inputs": msgspec.Raw(_CONTENT)} if dice.random() < 0.05 else {}
        return {**asked, **answered, **content, "time_to_first_token_ns": dice.randrange(SECOND_NS)}


_CONTENT = msgspec.json.encode([{"type": "human", "content": "Where is my order? " * 20}])


def _session(number: int) -> str:
    return f"session-{number:06}"


def _owner(session: int) -> dict[str, Any]:
    """Whose session it is: of one user and service."""
    return {
        "user_id": f"user-{session * 7_919 % USERS:05}",
        "service": SERVICES[session * 31 % len(SERVICES)],
        "environment": "production" if session % 10 else "staging",
    }


def _run_id(dice: random.Random, at_ns: int) -> str:
    # LangChain's are of version 7: milliseconds, then chance.
    return str(uuid.UUID(int=at_ns // 10**6 << 80 | 7 << 76 | dice.getrandbits(76)))


def fill_store(url: str, runs: int, until_ns: int) -> int:
    """Makes the store of a month up to an instant; returns how many events went in."""
    settings = ConsumerSettings.load(database_url=url, cost_by="metadata.team", runs_retention_days=KEPT_DAYS)
    with open_store(url, "runtap.events") as store, Writer.of(store) as writer:
        tools = Tools.of(store, writer, PriceTable.load(), settings)
        partitions = [Partition(number, PROJECTIONS, tools) for number in range(PARTITIONS)]
        for partition in partitions:
            partition.load(0)
        lanes, dice, count = [_Lane(number) for number in range(PARTITIONS)], random.Random(7), 0

        def commit(number: int) -> None:
            lane, partition = lanes[number], partitions[number]
            if lane.records:
                partition.commit(partition.fold(lane.records))
            lane.records, lane.waiting = [], 0

        for number, at_ns, events in _Traffic(runs, until_ns).frames():
            lanes[number].append(events, at_ns, dice)
            count += len(events) + 1
            if lanes[number].waiting >= _COMMIT_EVENTS:
                commit(number)
        for number in range(PARTITIONS):
            commit(number)
            # Commits of many hours each pass on less than has come.
            while changes := passed_hours(writer, "cost", (number, 1), until_ns, Calendar(store.zone)):
                with writer.transaction():
                    for statement, parameters in changes:
                        writer.execute(statement, parameters)
        return count


def copy_store(source_url: str, url: str) -> None:
    """Makes a store on PostgreSQL with all rows of one on SQLite."""
    libpq_url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        open_store(source_url) as source,
        open_store(url, source.events_topic),
        source.read() as rows,
        psycopg.connect(libpq_url, autocommit=True) as connection,
    ):
        for table in set(tables.metadata.sorted_tables) - {tables.store, tables.alert_lease}:
            connection.execute(f"TRUNCATE {table.name}".encode())
            with connection.cursor() as cursor, cursor.copy(copy_statement(table).encode()) as copy:
                copy.set_types(column_types(table))
                for row in rows.execute(select(table), execution_options={"yield_per": 1_000}):
                    copy.write_row(tuple(row))
        # As autovacuum does in time.
        connection.execute("VACUUM ANALYZE")
