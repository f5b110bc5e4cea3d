"""Tells of two processes under one emitter id: they share its numbers, and of each only one event is applied."""

from __future__ import annotations

import asyncio
import random

import structlog

from runtap_consumers.errors import StoreError
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.snapshot import open_snapshot

# Looking takes 0.15 s where 200 emitters have reported for an hour.
LOOK_EVERY_SECONDS = 20.0

_logger = structlog.get_logger(__name__)


async def tell_shared_emitters(store: Store) -> None:
    """Logs every emitter that is more than one process, once, until cancelled."""
    told = set[str]()
    while True:
        # At random, so that the workers of one store do not look all at once.
        await asyncio.sleep(LOOK_EVERY_SECONDS * random.uniform(0.5, 1.5))
        try:
            found = await asyncio.to_thread(find_shared, store)
        except StoreError as error:
            _logger.warning("shared_emitters_not_looked_for", reason=str(error))
            continue
        for emitter, processes in found.items():
            if emitter not in told:
                told.add(emitter)
                _logger.error("emitter_shared", emitter=emitter, processes=processes)


def find_shared(store: Store) -> dict[str, tuple[tuple[str, int], ...]]:
    """Emitters that are more than one process, with the hosts and process ids that are known of them.

    Raises:
        StoreError: the store cannot be read.
    """
    with open_snapshot(store) as snapshot:
        return read_books(snapshot).shared
