"""Which runs are forwarded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from runtap_schemas import RunEnded, RunStarted


@dataclass(frozen=True)
class RunChoice:
    """Filters as `runtap runs` has them, `None` leaves one out; and the share of traces, each with all of its runs."""

    sample: float = 1.0
    service: str | None = None
    name: str | None = None
    tag: str | None = None
    metadata: tuple[str, str] | None = None
    model: str | None = None
    status: str | None = None
    run_type: str | None = None

    def samples(self, trace_id: str) -> bool:
        """Whether a trace is of the sample: the same for every process and at any time."""
        digest = hashlib.blake2b(trace_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.sample * 2**64

    def shows_starts(self) -> bool:
        """Whether a start tells whether its run is wanted."""
        return all(one is None for one in (self.tag, self.metadata, self.model, self.status))

    def takes_start(self, event: RunStarted) -> bool:
        """Whether a run is wanted before it has ended."""
        return self.shows_starts() and self._takes_identity(event)

    def takes(self, event: RunEnded) -> bool:
        """Whether an ended run is wanted."""
        return (
            self._takes_identity(event)
            and (self.status is None or event.status == self.status)
            and (self.model is None or self.model in (event.model, event.request_model))
            and (self.tag is None or self.tag in event.tags)
            and (self.metadata is None or self._has_metadata(event, *self.metadata))
        )

    def _takes_identity(self, event: RunStarted | RunEnded) -> bool:
        return (
            (self.service is None or event.service == self.service)
            and (self.name is None or event.name == self.name)
            and (self.run_type is None or event.run_type == self.run_type)
        )

    @staticmethod
    def _has_metadata(event: RunEnded, key: str, value: str) -> bool:
        found = event.metadata.get(key)
        return found is not None and value in (found, msgspec.json.encode(found).decode())
