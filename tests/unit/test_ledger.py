"""The ledger and `complete_to`, over random histories of emitters, logs and readers, and by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtap_consumers.figures.completeness import work_out_completeness, work_out_ledger, work_out_sums, worst_of
from runtap_consumers.projections.lane_marks import LaneMarks
from runtap_consumers.projections.rollups import LANE_RETENTION_NS
from runtap_consumers.store.read.books import SILENCE_NS, Books, LaneState, PositionState, Report

PROJECTIONS = ("cost", "ledger")
PARTITIONS = (0, 1)
SECOND = 10**9


@dataclass
class Entry:
    """A record of a partition's log."""

    emitter: str
    number: int
    at_ns: int
    log_time_ns: int
    report: Report | None = None
    is_unreadable: bool = False


@dataclass
class ModelEmitter:
    """An emitter that keeps books as the real one does."""

    name: str
    captured: int = 0
    waiting: list[int] = field(default_factory=list)
    dropped: int = 0
    superseded: int = 0
    adopted: dict[str, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    skipped: dict[tuple[str, int], tuple[tuple[int, int], ...]] = field(default_factory=dict)
    reports: int = 0
    state: str = "open"
    numbered: list[tuple[int, int, int]] = field(default_factory=list)


class World:
    """Emitters, a log of two partitions and two projections that read it."""

    def __init__(self, begins: dict[str, int]) -> None:
        self.now_ns = 1_000 * SECOND
        self.emitters = {name: ModelEmitter(name) for name in "abc"}
        self.log: dict[int, list[Entry]] = {partition: [] for partition in PARTITIONS}
        self.begins = begins
        self.offsets: dict[tuple[str, int], int] = {}
        self.marks: dict[tuple[str, int], LaneMarks] = {}
        self.applied: dict[str, set[tuple[str, int, int]]] = defaultdict(set)
        self.reports: dict[tuple[str, int], Report] = {}

    def capture(self, emitter: ModelEmitter) -> None:
        emitter.captured += 1
        emitter.waiting.append(self.now_ns)

    def drop(self, emitter: ModelEmitter) -> None:
        emitter.captured += 1
        emitter.dropped += 1

    def supersede(self, emitter: ModelEmitter) -> None:
        if emitter.waiting:
            emitter.waiting.pop()
            emitter.superseded += 1

    def _give_number(self, emitter: ModelEmitter, partition: int, at_ns: int) -> int:
        number = emitter.lanes[partition] = emitter.lanes.get(partition, 0) + 1
        emitter.numbered.append((partition, number, at_ns))
        return number

    def send(self, emitter: ModelEmitter, partition: int, is_unreadable: bool = False) -> None:
        if emitter.waiting:
            at_ns = emitter.waiting.pop(0)
            number = self._give_number(emitter, partition, at_ns)
            self.log[partition].append(Entry(emitter.name, number, at_ns, self.now_ns, is_unreadable=is_unreadable))

    def skip(self, emitter: ModelEmitter, partition: int) -> None:
        if emitter.waiting:
            number = self._give_number(emitter, partition, emitter.waiting.pop(0))
            place = (emitter.name, partition)
            emitter.skipped[place] = (*emitter.skipped.get(place, ()), (number, number))

    def repeat(self, partition: int, back: int) -> None:
        if self.log[partition]:
            entry = self.log[partition][-1 - back % len(self.log[partition])]
            self.log[partition].append(replace(entry, log_time_ns=self.now_ns))

    def report(self, emitter: ModelEmitter, partition: int, closing: bool = False) -> None:
        emitter.captured += 1
        emitter.reports += 1
        complete_at = min(emitter.waiting, default=self.now_ns)
        number = self._give_number(emitter, partition, self.now_ns)
        report = Report(
            emitter.name,
            emitter.reports,
            self.now_ns,
            complete_at,
            emitter.captured,
            closing,
            emitter.superseded,
            {"full": emitter.dropped} if emitter.dropped else {},
            dict(emitter.adopted),
            dict(emitter.lanes),
            dict(emitter.skipped),
        )
        self.log[partition].append(Entry(emitter.name, number, self.now_ns, self.now_ns, report))

    def close(self, emitter: ModelEmitter, partition: int) -> None:
        while emitter.waiting:
            self.send(emitter, partition)
        self.report(emitter, partition, closing=True)
        emitter.state = "closed"

    def kill(self, emitter: ModelEmitter) -> None:
        emitter.state = "killed"

    def adopt(self, adopter: ModelEmitter) -> None:
        for other in self.emitters.values():
            if other.state == "killed" and other.waiting:
                adopter.adopted[other.name] = adopter.adopted.get(other.name, 0) + len(other.waiting)
                # They count from now: nobody can have known of them before, whatever was called complete by then.
                adopter.waiting += [self.now_ns] * len(other.waiting)
                other.waiting = []

    def read(self, projection: str, partition: int, count: int) -> None:
        begin = self.begins[projection]
        offset = self.offsets.setdefault((projection, partition), begin)
        marks = self.marks.setdefault((projection, partition), LaneMarks(begin, {}))
        for entry in self.log[partition][offset : offset + count]:
            is_new = marks.take(entry.emitter, entry.number, entry.at_ns, entry.log_time_ns, entry.is_unreadable)
            if is_new:
                self.applied[projection].add((entry.emitter, partition, entry.number))
            if is_new and entry.report and projection == "ledger":
                self.reports[entry.emitter, entry.report.number] = replace(entry.report, log_time_ns=entry.log_time_ns)
            self.offsets[projection, partition] += 1

    def books(self) -> Books:
        lanes = [
            LaneState(
                projection,
                partition,
                emitter,
                lane.mark,
                lane.forgotten + sum(last - first + 1 for first, last in lane.gaps),
                lane.before,
                lane.quarantined,
                lane.first_at_ns,
                lane.last_log_time_ns,
            )
            for (projection, partition), marks in self.marks.items()
            for emitter, lane in marks.lanes.items()
        ]
        positions = [
            PositionState(
                projection,
                partition,
                self.begins[projection],
                max((entry.log_time_ns for entry in self.log[partition][:offset]), default=0),
            )
            for (projection, partition), offset in self.offsets.items()
        ]
        return Books(lanes, self.reports.values(), positions)


STEPS = st.tuples(
    st.sampled_from(
        ["capture"] * 3
        + ["send"] * 3
        + ["report"] * 2
        + ["read"] * 3
        + ["drop", "supersede", "skip", "unreadable", "repeat", "close", "kill", "adopt"]
    ),
    st.sampled_from("abc"),
    st.sampled_from(PARTITIONS),
    st.sampled_from(PROJECTIONS),
    st.integers(1, 12),
)


def take_step(world: World, step: tuple[str, str, int, str, int]) -> None:
    kind, name, partition, projection, count = step
    world.now_ns += 5 * SECOND
    emitter = world.emitters[name]
    if kind == "read":
        world.read(projection, partition, count)
    elif kind == "repeat":
        world.repeat(partition, count)
    elif emitter.state != "open":
        return
    elif kind in ("capture", "drop", "supersede", "kill", "adopt"):
        getattr(world, kind)(emitter)
    elif kind == "unreadable":
        world.send(emitter, partition, is_unreadable=True)
    else:
        getattr(world, kind)(emitter, partition)


def check_sums(world: World, books: Books) -> None:
    for projection in PROJECTIONS:
        total = work_out_ledger(books, PROJECTIONS)[projection]
        accounted = total.applied + total.in_flight + total.lost + total.quarantined + total.superseded
        assert total.captured == accounted + sum(total.dropped.values())
        for emitter in books.emitters:
            sums = work_out_sums(books, projection, emitter)
            figures = (sums.captured, sums.applied, sums.in_flight, sums.lost, sums.quarantined, sums.superseded)
            assert min(figures) >= 0, (projection, emitter, sums)


def check_claims(world: World, books: Books) -> None:
    """Before `complete_to` no event of an emitter that is known and has not left is missing uncounted."""
    for projection in PROJECTIONS:
        claim = work_out_completeness(books, [projection])
        if claim.at_ns is None:
            continue
        for name, emitter in world.emitters.items():
            if name in claim.silent or name not in books.first_at_ns:
                continue
            known_from = books.first_at_ns[name]
            assert not [at for at in emitter.waiting if known_from <= at < claim.at_ns]
            skipped = {
                (partition, number)
                for (_, partition), ranges in emitter.skipped.items()
                for first, last in ranges
                for number in range(first, last + 1)
            }
            for partition, number, at_ns in emitter.numbered:
                if not known_from <= at_ns < claim.at_ns or (partition, number) in skipped:
                    continue
                lane = books.lanes_of(projection, name)[partition]
                # A reader that began within a repeat takes what lies between for a gap: counted as lost, not unseen.
                marks = world.marks.get((projection, partition))
                gaps = marks.lanes[name].gaps if marks and name in marks.lanes else []
                is_counted_lost = any(first <= number <= last for first, last in gaps)
                is_applied = (name, partition, number) in world.applied[projection]
                assert is_applied or is_counted_lost or number <= lane.before


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, min_size=30, max_size=120), late_begin=st.sampled_from((0, 0, 0, 3)))
def test_no_term_is_negative_and_no_claim_is_false_at_any_moment(
    steps: list[tuple[str, str, int, str, int]], late_begin: int
) -> None:
    world = World({"cost": late_begin, "ledger": 0})
    for step in steps:
        take_step(world, step)
        books = world.books()
        check_sums(world, books)
        check_claims(world, books)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEPS, min_size=30, max_size=100))
def test_nothing_is_in_flight_at_rest_of_emitters_that_closed(
    steps: list[tuple[str, str, int, str, int]],
) -> None:
    world = World({"cost": 0, "ledger": 0})
    for step in steps:
        take_step(world, step)
    for emitter in world.emitters.values():
        if emitter.state == "open":
            world.adopt(emitter)
            world.close(emitter, 0)
    for projection in PROJECTIONS:
        for partition in PARTITIONS:
            world.read(projection, partition, 10**6)
    books, emitters = world.books(), world.emitters.values()
    # Of a killed emitter nobody knows what it did after its last report.
    for emitter in emitters:
        for projection in PROJECTIONS:
            assert emitter.state == "killed" or work_out_sums(books, projection, emitter.name).in_flight == 0
    if all(emitter.state == "closed" for emitter in emitters):
        skipped = sum(len(ranges) for emitter in emitters for ranges in emitter.skipped.values())
        for sums in work_out_ledger(books, PROJECTIONS).values():
            assert sums.captured == sum(emitter.captured for emitter in emitters)
            assert sum(sums.dropped.values()) == sum(emitter.dropped for emitter in emitters)
            assert sums.lost == skipped
        assert work_out_completeness(books, PROJECTIONS).at_ns is not None


def lane(emitter: str, mark: int, projection: str = "cost", partition: int = 0, **other: int) -> LaneState:
    values = {"missing": 0, "before": 0, "quarantined": 0, "first_at_ns": 100, "last_log_time_ns": 100, **other}
    return LaneState(projection, partition, emitter, mark, **values)


def report(emitter: str, number: int, log_time_ns: int, last: int, **other: int | bool) -> Report:
    values = {"complete_at_ns": log_time_ns, "captured": last, **other}
    return Report(emitter, number, log_time_ns, lanes={0: last}, **values)  # type: ignore[arg-type]


def test_nothing_known_is_complete_to_nothing() -> None:
    books = Books([], [])
    assert work_out_completeness(books, ("cost",)).at_ns is None
    assert worst_of(work_out_ledger(books, ())).captured == 0


def test_emitter_known_by_events_alone_counts_with_its_first_event() -> None:
    books = Books([lane("a", 5, first_at_ns=77)], [])
    assert work_out_completeness(books, ("cost",)).at_ns == 77


def test_report_counts_only_once_its_lanes_are_applied_or_announced_as_skipped() -> None:
    reports = [report("a", 1, 1_000, last=3), report("a", 2, 2_000, last=6)]
    assert work_out_completeness(Books([lane("a", 5)], reports), ("cost",)).at_ns == 1_000
    assert work_out_completeness(Books([lane("a", 6)], reports), ("cost",)).at_ns == 2_000
    announced = replace(reports[1], skipped={("a", 0): ((5, 5), (6, 6))})
    assert work_out_completeness(Books([lane("a", 4)], [reports[0], announced]), ("cost",)).at_ns == 2_000


def test_report_waits_for_what_it_replayed_of_another_emitter() -> None:
    replaying = replace(report("b", 1, 2_000, last=1), replayed={("a", 0): 9})
    lanes = [lane("a", 8, first_at_ns=50), lane("b", 1, first_at_ns=1_500)]
    assert work_out_completeness(Books(lanes, [replaying]), ("cost",)).at_ns == 50
    lanes[0] = lane("a", 9, first_at_ns=50)
    assert Books(lanes, [replaying]).is_covered("cost", replaying)


def test_figure_is_complete_to_the_projection_furthest_behind() -> None:
    reports = [report("a", 1, 1_000, last=3), report("a", 2, 2_000, last=6)]
    books = Books([lane("a", 6), lane("a", 3, "errors")], reports)
    assert work_out_completeness(books, ("cost", "errors")).at_ns == 1_000
    assert work_out_completeness(books, ("cost", "errors", "sessions")).at_ns == 100


def test_clock_set_back_does_not_reopen_what_was_complete() -> None:
    reports = [report("a", 1, 1_000, last=3, complete_at_ns=900), report("a", 2, 2_000, last=4, complete_at_ns=400)]
    assert work_out_completeness(Books([lane("a", 4)], reports), ("cost",)).at_ns == 900


def test_closed_emitter_holds_nobody_back_and_the_last_to_close_decides() -> None:
    lanes = [lane("a", 3), lane("b", 3)]
    closed = [report("a", 1, 1_000, last=3, closing=True), report("b", 1, 5_000, last=3)]
    assert work_out_completeness(Books(lanes, closed), ("cost",)).at_ns == 5_000
    closed[1] = replace(closed[1], closing=True)
    assert work_out_completeness(Books(lanes, closed), ("cost",)).at_ns == 5_000


@pytest.mark.parametrize(
    ("step_seconds", "count", "position_ns", "has_left"),
    [
        (10, 5, 400 * SECOND, False),
        (10, 6, 400 * SECOND, True),
        # Reports a minute apart: Kafka was away, which ages nobody.
        (60, 6, 400 * SECOND, False),
        # The projection has not come that far in the silent emitter's partition.
        (10, 6, 130 * SECOND, False),
    ],
)
def test_emitter_leaves_after_a_minute_of_the_others_reports(
    step_seconds: int, count: int, position_ns: int, has_left: bool
) -> None:
    begin = 100 * SECOND
    lanes = [lane("a", 3, last_log_time_ns=begin), lane("b", 99, last_log_time_ns=begin, partition=1)]
    others = [
        Report("b", number, begin + number * step_seconds * SECOND, begin + number * SECOND, 1, lanes={1: number})
        for number in range(1, count + 1)
    ]
    positions = [PositionState("cost", 0, 0, position_ns), PositionState("cost", 1, 0, position_ns)]
    claim = work_out_completeness(Books(lanes, others, positions), ("cost",))
    assert claim.silent == (("a",) if has_left else ())
    assert claim.at_ns == (begin + count * SECOND if has_left else 100)


def test_closed_emitter_that_is_still_in_flight_does_not_leave() -> None:
    lanes = [lane("a", 2, last_log_time_ns=SECOND), lane("b", 99, partition=1)]
    reports = [
        report("a", 1, SECOND, last=3, closing=True),
        *(Report("b", number, number * 10 * SECOND, number, 1, lanes={1: 1}) for number in range(1, 30)),
    ]
    positions = [PositionState("cost", 0, 0, 400 * SECOND)]
    claim = work_out_completeness(Books(lanes, reports, positions), ("cost",))
    assert claim.silent == ()
    assert claim.at_ns == 29 or claim.at_ns == 100
    assert work_out_sums(Books(lanes, reports, positions), "cost", "a").in_flight == 1


@pytest.mark.parametrize(
    "position", [PositionState("runs", 0, 50, 3_000), PositionState("runs", 0, 0, 2 * LANE_RETENTION_NS)]
)
def test_what_a_projection_can_never_meet_lies_before_it(position: PositionState) -> None:
    ended = report("a", 1, 2_000, last=9, closing=True)
    lanes = [lane("a", 9, "ledger", last_log_time_ns=2_000)]
    sums = work_out_sums(Books(lanes, [ended], [position]), "runs", "a")
    assert (sums.captured, sums.applied, sums.in_flight) == (0, 0, 0)
    assert work_out_completeness(Books(lanes, [ended], [position]), ("runs",)).at_ns == 2_000


def test_killed_emitter_keeps_what_it_said_in_flight() -> None:
    books = Books([lane("a", 3, missing=1)], [report("a", 1, 1_000, last=8, captured=12)])
    sums = work_out_sums(books, "cost", "a")
    assert (sums.captured, sums.applied, sums.lost, sums.in_flight) == (12, 2, 1, 9)


def test_headline_is_the_projection_that_shows_least() -> None:
    books = Books([lane("a", 8), lane("a", 5, "errors")], [report("a", 1, 1_000, last=8)])
    assert worst_of(work_out_ledger(books, ("cost", "errors"))).applied == 5


def test_silence_is_a_minute_as_promised() -> None:
    assert SILENCE_NS == 60 * SECOND
