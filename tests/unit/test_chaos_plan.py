"""The schedule of faults."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chaos.plan import TAKEOVER_SECONDS, Plan


@pytest.mark.parametrize("session_seconds", [3.0, 10.0])
def test_isolated_kills_leave_time_for_the_takeover_and_then_for_the_return(session_seconds: float) -> None:
    plan = Plan(7, 400, 1, 1, session_seconds=session_seconds, is_isolated=True)
    faults = plan.faults()
    assert faults == plan.faults()
    assert {fault.kind for fault in faults} == {"kill_worker"}
    assert len(faults) >= 20
    for fault, following in pairwise(faults):
        assert fault.seconds > session_seconds + TAKEOVER_SECONDS
        # It has to start, to join and to settle.
        assert following.at_seconds >= fault.at_seconds + fault.seconds + 4
