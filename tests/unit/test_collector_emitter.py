"""The emitter's look at its ring."""

from __future__ import annotations

from typing import Any, cast

import pytest

from captured_events import Captured


def test_health_counts_what_waits_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    emitter = Captured().emitter
    was_held: list[bool] = []

    def count() -> int:
        was_held.append(cast("Any", emitter.ring.lock)._is_owned())
        return 1

    monkeypatch.setattr(emitter.ring, "count_waiting", count)
    assert emitter.health().problems == ["sender_down"]
    assert was_held == [True]
