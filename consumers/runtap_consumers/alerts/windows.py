"""Which windows a round judges: all that came to an end since the last one, and all that a commit touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from runtap_consumers.instants import hour_start_ns
from runtap_consumers.projections.rollups import RETENTION_NS
from runtap_consumers.units import DAY_NS, MINUTE_NS, SECOND_NS, minute_of

# Events of a minute arrive within this after its end, as a rule; what comes later has its windows judged again.
SETTLE_NS = 2 * SECOND_NS
_HOURS_JUDGED_NS = 7 * DAY_NS


@dataclass(frozen=True)
class Mark:
    """How far the figures of a projection were judged: windows that end at or before `judged_to_ns` as complete ones.
    `touched_ns`: the begin of the oldest minute of which windows that hold it are still to be judged. `early_to_ns`:
    up to where a round judged windows that are not complete, which had no time for the rest.
    """

    judged_to_ns: int
    touched_ns: int | None = None
    early_to_ns: int | None = None


@dataclass(frozen=True)
class RoundPlan:
    """What a round knows of a projection.

    `complete_to_ns`: windows that end at or before it are complete; it is the begin of a minute.
    """

    mark: Mark
    complete_to_ns: int
    now_ns: int


@dataclass(frozen=True)
class Window:
    """A stretch of time that is judged. `is_complete`: all that was captured in it has been applied, as far as is
    known; what only grows is judged before that, too.
    """

    from_ns: int
    to_ns: int
    is_complete: bool


def complete_to(watermark_ns: int) -> int:
    """Up to where windows are complete. `watermark_ns`: up to which log time everything is applied."""
    return minute_of(max(watermark_ns - SETTLE_NS, 0))


def ends_to_judge(
    plan: RoundPlan, step: str, span_ns: int, zone: ZoneInfo, is_early: bool
) -> Iterator[tuple[int, bool]]:
    """The ends of the windows that a rule has to judge, ascending, each with whether it is complete.

    Args:
        plan: of the rule's projection.
        step: windows end with each `minute` or each `hour`.
        span_ns: how long a window is.
        zone: of the hours.
        is_early: also those that are not complete, where anything was touched: all of them, in their order, since what
            has just ended in a complete one may begin again in any that follows.
    """
    mark = plan.mark
    after_ns = mark.judged_to_ns if mark.touched_ns is None else min(mark.judged_to_ns, mark.touched_ns)
    # Of what is older nothing is left to judge by.
    kept_ns = RETENTION_NS["minute"] - span_ns if step == "minute" else _HOURS_JUDGED_NS
    after_ns = max(after_ns, plan.now_ns - kept_ns)
    yield from ((end_ns, True) for end_ns in _ends(after_ns, plan.complete_to_ns, step, zone))
    if is_early and mark.touched_ns is not None:
        after_ns = max(plan.complete_to_ns, plan.now_ns - kept_ns, mark.early_to_ns or 0)
        last_ns = _next_end(plan.now_ns, step, zone)
        yield from ((end_ns, False) for end_ns in _ends(after_ns, last_ns, step, zone))


def _ends(after_ns: int, last_ns: int, step: str, zone: ZoneInfo) -> Iterator[int]:
    end_ns = _next_end(after_ns, step, zone)
    while end_ns <= last_ns:
        yield end_ns
        end_ns = _next_end(end_ns, step, zone)


def _next_end(at_ns: int, step: str, zone: ZoneInfo) -> int:
    """The first end after an instant."""
    return minute_of(at_ns) + MINUTE_NS if step == "minute" else hour_start_ns(at_ns, zone, hours_later=1)
