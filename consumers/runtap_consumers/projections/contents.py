"""Contents: what went into runs and came out of them, for services that capture it; without content, no row."""

from __future__ import annotations

from typing import Any

import cramjam
from msgspec import UNSET

from runtap_consumers.projections.batch import Batch
from runtap_consumers.projections.rollups import CONTENTS, Changes
from runtap_schemas import RunEnded


def fold_contents(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds the ended runs of a batch that have content."""
    rows: dict[tuple[Any, ...], list[Any]] = {
        (event.run_id,): [batch.log_time_ns, _packed(event)]
        for event, _ in batch.ended_uncapped
        if event.inputs is not UNSET or event.outputs is not UNSET
    }
    return Changes(rows={CONTENTS.name: rows})


def _packed(event: RunEnded) -> bytes:
    parts = [
        b'"%b":%b' % (name, bytes(value))
        for name, value in ((b"inputs", event.inputs), (b"outputs", event.outputs))
        if value is not UNSET
    ]
    if event.content_bytes is not None:
        parts.append(b'"content_bytes":%d' % event.content_bytes)
    return bytes(cramjam.zstd.compress(b"{%b}" % b",".join(parts)))
