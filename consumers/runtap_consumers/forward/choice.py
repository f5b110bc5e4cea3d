"""Which runs are forwarded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from runtap_consumers.store.read.run_filter import RunFilter
from runtap_schemas import RunEnded, RunScored, RunStarted

_OF_EVERY_RUN = ("session_id", "trace_id", "user_id", "service", "name", "run_type")
_OF_ENDED_RUNS = ("tag", "metadata", "model", "status")


@dataclass(frozen=True)
class RunChoice(RunFilter):
    """Filters as `runtap runs` has them; and the share of traces, each with all of its runs."""

    sample: float = 1.0

    def samples(self, trace_id: str) -> bool:
        """Whether a trace is of the sample: the same for every process and at any time."""
        digest = hashlib.blake2b(trace_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.sample * 2**64

    def shows_starts(self) -> bool:
        """Whether a start tells whether its run is wanted."""
        return all(getattr(self, name) is None for name in _OF_ENDED_RUNS)

    def takes(self, event: RunStarted | RunEnded) -> bool:
        """Whether a run is wanted; of one that has not ended: whether that is known already."""
        if any(getattr(self, name) not in (None, getattr(event, name)) for name in _OF_EVERY_RUN):
            return False
        if isinstance(event, RunStarted):
            return self.shows_starts()
        return (
            self.status in (None, event.status)
            and (self.model is None or self.model in (event.model, event.request_model))
            and (self.tag is None or self.tag in event.tags)
            and (self.metadata is None or self._has_metadata(event, *self.metadata))
        )

    def takes_score(self, event: RunScored, trace_id: str) -> bool:
        """Whether what was thought of a run is wanted, where nothing else is known of that run."""
        told = {"trace_id": trace_id, **{name: getattr(event, name) for name in ("service", "session_id", "user_id")}}
        return all(value is None or getattr(self, name) in (None, value) for name, value in told.items())

    @staticmethod
    def _has_metadata(event: RunEnded, key: str, value: str) -> bool:
        found = event.metadata.get(key)
        return found is not None and value in (found, msgspec.json.encode(found).decode())
