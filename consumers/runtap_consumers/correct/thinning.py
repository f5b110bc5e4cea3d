"""Thinning of emitters' reports: one every 10 s for 14 days is 120,000 rows an emitter, of which few are ever read
again.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import structlog

from runtap_consumers.errors import StoreError
from runtap_consumers.figures.completeness import witnesses_of_silence
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.emitters import Books
from runtap_consumers.store.read.losses import read_forks
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.store.retention import delete_reports, read_old_reports
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import HOUR_NS

# Reports of the last hour of log time are kept, whatever they say: people look at them.
_KEPT_WHOLE_NS = HOUR_NS
# What one call deletes at most, and what one transaction does.
_ROWS_A_CALL = 50_000
_THIN_EVERY_SECONDS = 600.0
_ROWS_A_TRANSACTION = 500

_logger = structlog.get_logger(__name__)


@dataclass
class _Plan:
    """`below`: by emitter, the number under which every projection has covered its reports. `witnesses`: (emitter, log
    time) of reports that show that another one fell silent.
    """

    before_ns: int
    below: dict[str, int] = field(default_factory=dict)
    witnesses: set[tuple[str, int]] = field(default_factory=set)


async def keep_thinning_reports(store: Store) -> None:
    """Deletes them every ten minutes or so, until cancelled."""
    while True:
        # Workers of one store do it at different moments.
        await asyncio.sleep(_THIN_EVERY_SECONDS * random.uniform(0.5, 1.5))
        try:
            deleted = await asyncio.to_thread(thin_reports, store)
            _logger.debug("reports_thinned", deleted=deleted)
        except StoreError as error:
            _logger.warning("reports_not_thinned", reason=str(error))


def thin_reports(store: Store) -> int:
    """Deletes the reports that neither the ledger nor `complete_to` needs any more. Both say the same as before.

    Of each emitter these are kept: the newest report and a closing one; all that not every projection has covered; the
    newest that each has covered; what its `complete_to` was highest in; what shows that another emitter fell silent;
    and those of the last hour.

    Returns:
        How many were deleted; at most 50,000 a call, in transactions of 500.

    Raises:
        StoreError: the store cannot be read or written.
    """
    with open_snapshot(store) as snapshot:
        projections = snapshot.projections
        books = read_books(snapshot, projections)
        # The ids by which two processes under one emitter id were found are kept as evidence.
        evidence = {fork.emitter: (fork.number, fork.number + 1) for fork in read_forks(snapshot)}
        plan = _plan(books, projections, snapshot.newest_log_time_ns - _KEPT_WHOLE_NS)
    deleted = 0
    with Writer.of(store) as writer:
        for emitter, number in plan.below.items():
            surplus = _surplus_of(writer, books, plan, emitter, number, _ROWS_A_CALL - deleted)
            for first in range(0, len(surplus), _ROWS_A_TRANSACTION):
                with writer.transaction():
                    numbers = surplus[first : first + _ROWS_A_TRANSACTION]
                    deleted += delete_reports(writer, emitter, numbers, evidence.get(emitter, ()))
            if deleted >= _ROWS_A_CALL:
                break
    return deleted


def _plan(books: Books, projections: list[str], before_ns: int) -> _Plan:
    plan = _Plan(before_ns)
    for emitter in books.newest:
        covered = [books.covered_reports(projection, emitter) for projection in projections]
        if all(covered):
            plan.below[emitter] = min(reports[-1].number for reports in covered)
    for emitter in books.last_heard_ns:
        if not books.is_closed(emitter):
            plan.witnesses |= witnesses_of_silence(books, emitter)
    return plan


def _surplus_of(writer: Writer, books: Books, plan: _Plan, emitter: str, number: int, at_most: int) -> list[int]:
    found = read_old_reports(writer, emitter, number, plan.before_ns, at_most)
    # A clock that was set back must not reopen what was already called complete.
    highest_ns = next(report.complete_at_ns for report in books.reports[emitter] if report.number == number)
    kept: int | None = None
    for report in found:
        if report.complete_at_ns > highest_ns:
            highest_ns, kept = report.complete_at_ns, report.number
    return [
        report.number
        for report in found
        if report.number != kept and (emitter, report.log_time_ns) not in plan.witnesses
    ]
