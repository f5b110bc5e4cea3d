"""Takes one rule of exactness away at a time, and looks which test notices.

    python tests/mutants.py [NAME …]

Every mutation is one change to a copy of the tree; the tests that should see it run there, and the first to fail is
printed. A mutation that all of them pass is a rule that nothing guards: the exit code is 1. Where the place of one was
rewritten, the script says so and ends: the mutation is to be moved along.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = ("schemas", "collector", "consumers", "demo", "tests")
_FILES = ("pyproject.toml", "README.md")
_TIMEOUT_SECONDS = 240

MODEL = "tests/integration/test_model.py"
PARTITION = "tests/integration/test_partition.py"
FENCING = "tests/integration/test_fencing.py"
LANES = "tests/unit/test_lane_marks.py"
LEDGER = "tests/unit/test_ledger.py"
FRAME = "tests/unit/test_frame.py"
ACCOUNT = "tests/integration/test_account_commands.py"
REBUILD = "tests/integration/test_rebuild.py"
COSTS = "tests/integration/test_costs.py"
REFUSAL = "tests/integration/test_refusal.py"
BUFFER = "tests/unit/test_collector_buffer.py"
FRAMES = "tests/unit/test_collector_frames.py"
SENDER = "tests/unit/test_collector_sender.py"
SPOOL = "tests/unit/test_collector_spool.py"

_CONSUMERS = "consumers/runtap_consumers"
_COLLECTOR = "collector/runtap_collector"


@dataclass(frozen=True)
class Mutant:
    """A change, and the tests that should see it. `old` must occur exactly once in the file."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "move whatever the position is",
        f"{_CONSUMERS}/store/writer.py",
        "AND next_offset = ? AND epoch = ?",
        "AND (next_offset = ? OR 1) AND epoch = ?",
        (PARTITION, MODEL),
    ),
    Mutant(
        "epoch not compared",
        f"{_CONSUMERS}/store/writer.py",
        "AND next_offset = ? AND epoch = ?",
        "AND next_offset = ? AND (epoch = ? OR 1)",
        (PARTITION, MODEL),
    ),
    Mutant(
        "a move of no row let pass",
        f"{_CONSUMERS}/store/writer.py",
        "if changed != 1:",
        "if changed > 1:",
        (PARTITION,),
    ),
    Mutant(
        "positions moved unsorted",
        f"{_CONSUMERS}/store/writer.py",
        "for move in sorted(commit.moves, key=lambda move: move.projection):",
        "for move in commit.moves:",
        (PARTITION,),
    ),
    Mutant(
        "mark not loaded",
        f"{_CONSUMERS}/store/positions.py",
        "    return LaneMark(**facts)",
        '    return LaneMark(**{**facts, "mark": 0})',
        (PARTITION, MODEL),
    ),
    Mutant(
        "gaps not loaded",
        f"{_CONSUMERS}/store/positions.py",
        '[(first, last) for first, last in orjson.loads(facts["gaps"])]',
        "[]",
        (PARTITION, MODEL),
    ),
    Mutant(
        "one table of marks for all projections",
        f"{_CONSUMERS}/worker/partition.py",
        "{name: load_lanes(connection, self.number, name) for name in self._positions}",
        "{name: load_lanes(connection, self.number, min(self._positions)) for name in self._positions}",
        (PARTITION, MODEL),
    ),
    Mutant(
        "projections in lockstep whatever their marks",
        f"{_CONSUMERS}/worker/partition.py",
        "if _state(twin) == _state(position) and lanes[name] == cursor.marks.lanes:",
        "if _state(twin) == _state(position):",
        (PARTITION, MODEL),
    ),
    Mutant(
        "marks reset at a new incarnation",
        f"{_CONSUMERS}/worker/partition.py",
        "commit.new_rows.append((tables.log_incidents, incidents))",
        'commit.deletions.append(("DELETE FROM lane_marks WHERE partition = ?", (self.number,)))',
        (PARTITION, MODEL),
    ),
    Mutant(
        "epoch not raised for a new log",
        f"{_CONSUMERS}/worker/partition.py",
        "next_epoch=position.epoch + 1,",
        "next_epoch=position.epoch,",
        (PARTITION,),
    ),
    Mutant(
        "sketches kept after a fence",
        f"{_CONSUMERS}/worker/partition.py",
        "self._open_run_ids = self._load_open_run_ids() if",
        "self._sketches = self._tools.__dict__.setdefault(f'sketches-{self.number}', self._sketches)\n"
        "        self._open_run_ids = self._load_open_run_ids() if",
        (MODEL,),
    ),
    Mutant(
        "unreadable record not counted as quarantined",
        f"{_CONSUMERS}/worker/decoding.py",
        "            marks.quarantine(emitter, len(new))",
        "            pass",
        (PARTITION, MODEL),
    ),
    Mutant(
        "unreadable line not counted as quarantined",
        f"{_CONSUMERS}/worker/decoding.py",
        "                marks.quarantine(emitter, len(unreadable))",
        "                pass",
        (PARTITION, MODEL),
    ),
    Mutant(
        "a frame that overlaps the mark applied whole",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "            new += range(self.mark + 1, last + 1)",
        "            new = [*range(first, last + 1)]",
        (LANES, MODEL),
    ),
    Mutant(
        "a frame that overlaps the mark taken for a repeat",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "            new += range(self.mark + 1, last + 1)",
        "            pass",
        (LANES, MODEL),
    ),
    Mutant(
        "any number believed",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "if not lane.can_reach(first, log_time_ns):",
        "if False:",
        (LANES,),
    ),
    Mutant(
        "a record whose emitter is not born so believed",
        "schemas/runtap_schemas/frame.py",
        "if header.emitter != emitter_of(header.birth):",
        "if False:",
        (FRAME,),
    ),
    Mutant(
        "claim of an unreadable record lost",
        "schemas/runtap_schemas/frame.py",
        "lane = (header.emitter, header.first, header.count, header.at)",
        "lane = (header.emitter, header.first, header.count)",
        (FRAME,),
    ),
    Mutant(
        "claim of a frame taken for its oldest event",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "            lane.at_ns = at_ns",
        "            lane.at_ns = max(lane.at_ns, log_time_ns + 1)",
        (LANES,),
    ),
    Mutant(
        "two processes under one emitter not seen",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "                lane.is_shared = 1",
        "                pass",
        (LANES,),
    ),
    Mutant(
        "late frames taken for another process",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "            if not new and lane.at_ns and not lane.forgotten:",
        "            if last <= lane.mark and lane.at_ns and not lane.forgotten:",
        (LANES, MODEL),
    ),
    Mutant(
        "marks dropped that other projections still need",
        f"{_CONSUMERS}/store/retention.py",
        " AND emitter NOT IN ({heard})",
        " AND ? IS NOT NULL AND ? IS NOT NULL",
        (PARTITION,),
    ),
    Mutant(
        "marks dropped of what the log still holds",
        f"{_CONSUMERS}/store/retention.py",
        "horizon = min(silent_ns, log_start_ns)",
        "horizon = silent_ns",
        (PARTITION,),
    ),
    Mutant(
        "caught up as of when it is written",
        f"{_CONSUMERS}/worker/worker.py",
        "await self._in_thread(partition.note_caught_up, asked_ns)",
        "await self._in_thread(partition.note_caught_up, time.time_ns())",
        (MODEL,),
    ),
    Mutant(
        "caught up without the log's end",
        f"{_CONSUMERS}/worker/worker.py",
        "if all(next_offset == log_end for next_offset, _ in positions):",
        "if True:",
        (FENCING,),
    ),
    Mutant(
        "caught up wherever the position is",
        f"{_CONSUMERS}/store/positions.py",
        'WHERE projection = ? AND partition = ? AND next_offset = ? "\n        "AND epoch = ?",',
        'WHERE projection = ? AND partition = ? AND (next_offset = ? OR 1) "\n        "AND epoch = ?",',
        (PARTITION,),
    ),
    Mutant(
        "gap not recorded",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "self._add_gap(len(self.gaps), (self.mark + 1, first - 1))",
        "pass",
        (LANES,),
    ),
    Mutant(
        "gap applied twice",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "first, last = self.gaps.pop(index)",
        "return True",
        (LANES,),
    ),
    Mutant(
        "no `before`", f"{_CONSUMERS}/projections/lane_marks.py", "if self._begun_at > 0 or", "if False or", (LANES,)
    ),
    Mutant(
        "fingerprint not compared",
        f"{_CONSUMERS}/kafka/partition_reader.py",
        "if record is not None and fingerprint_of(record) != fingerprint:",
        "if False:",
        (MODEL,),
    ),
    Mutant(
        "end of the log not compared",
        f"{_CONSUMERS}/kafka/partition_reader.py",
        "if next_offset > log_end:",
        "if False:",
        (MODEL,),
    ),
    Mutant(
        "a gap is no reason to look",
        f"{_CONSUMERS}/worker/worker.py",
        "if partition.opened_gap or due:",
        "if due:",
        (MODEL,),
    ),
    Mutant(
        "first batch of a log not compared with it",
        f"{_CONSUMERS}/worker/worker.py",
        "if any(not fingerprint for _, fingerprint in before):",
        "if False:",
        (MODEL,),
    ),
    Mutant(
        "memory kept after a commit that failed",
        f"{_CONSUMERS}/worker/worker.py",
        "        assigned.forget()\n        assigned.back_off()\n        self._health",
        "        assigned.back_off()\n        self._health",
        (FENCING, MODEL),
    ),
    Mutant(
        "memory kept after a fence",
        f"{_CONSUMERS}/worker/worker.py",
        "            assigned.forget()\n            assigned.back_off(is_fenced=True)\n            if assigned.fences",
        "            assigned.back_off(is_fenced=True)\n            if assigned.fences",
        (FENCING, MODEL),
    ),
    Mutant(
        "the log's end asked before the position",
        f"{_CONSUMERS}/worker/worker.py",
        "log_start, _ = await self._reader.log_range(number)\n"
        "            await self._in_thread(partition.load, log_start)\n"
        "            # Asked after loading: another worker may have moved the position beyond an end that was asked "
        "before.\n"
        "            _, log_end = await self._reader.log_range(number)\n",
        "log_start, log_end = await self._reader.log_range(number)\n"
        "            await self._in_thread(partition.load, log_start)\n",
        (FENCING,),
    ),
    Mutant(
        "no seek after loading",
        f"{_CONSUMERS}/worker/worker.py",
        "self._reader.seek(number, partition.next_offset)",
        "any(each.partition == number for each in self._reader._consumer._positions) or self._reader.seek("
        "number, partition.next_offset)",
        (MODEL,),
    ),
    Mutant(
        "no seek back after a record that cannot be decoded",
        f"{_CONSUMERS}/kafka/partition_reader.py",
        "            if not careful:\n                self._seek_back(topic_partition, next_offset)",
        "            if not careful:",
        (MODEL,),
    ),
    Mutant(
        "the record before not looked at if it cannot be decoded",
        f"{_CONSUMERS}/kafka/partition_reader.py",
        "return UndecodableRecord(offset, 0, repr(error))",
        "raise",
        (MODEL,),
    ),
    Mutant(
        "buckets past their retention filled again",
        f"{_CONSUMERS}/projections/grains.py",
        "if key[0] >= horizon}",
        "if key[0] >= 0}",
        (PARTITION,),
    ),
    Mutant(
        "a rebuild switches to a bucket that retention took in halves",
        f"{_CONSUMERS}/correct/rebuild_statements.py",
        "retention.expired_buckets(projection, sides.partition, log_time_ns)",
        "()",
        (REBUILD,),
    ),
    Mutant(
        "a rebuild on figures that another writer changed",
        f"{_CONSUMERS}/correct/rebuild.py",
        "if self._basis_of(live) != self._basis:",
        "if False:",
        (REBUILD,),
    ),
    Mutant(
        "a rebuild that passes live workers",
        f"{_CONSUMERS}/correct/rebuild.py",
        "if one.offset < self._live[number].next_offset]",
        "]",
        (REBUILD,),
    ),
    Mutant(
        "a rebuild that goes on with what was asked for otherwise",
        f"{_CONSUMERS}/correct/rebuild.py",
        "self._tools.prices.price_set, self._tools.settings.cost_attributes, epochs)",
        "epochs)",
        (REBUILD,),
    ),
    Mutant(
        "workers not fenced by a rebuild's switch",
        f"{_CONSUMERS}/correct/rebuild_statements.py",
        "UPDATE positions SET epoch = epoch + 1 WHERE",
        "UPDATE positions SET epoch = epoch WHERE",
        (REBUILD,),
    ),
    Mutant(
        "an event that older days lack called applied",
        f"{_CONSUMERS}/correct/refold.py",
        "if not counts and self._is_missing(emitter, number):",
        "if False:",
        (REBUILD,),
    ),
    Mutant(
        "a lane's gaps and unreadable numbers taken of the retained log alone",
        f"{_CONSUMERS}/correct/refold.py",
        "    if live is None:\n        return made",
        "    return made",
        (REBUILD,),
    ),
    Mutant(
        "repeats of what precedes the log counted by a rebuild",
        f"{_CONSUMERS}/correct/refold.py",
        "mark=lane.before)",
        "mark=0)",
        (REBUILD,),
    ),
    Mutant(
        "totals of the rebuilt days alone",
        f"{_CONSUMERS}/correct/rebuild_statements.py",
        "FROM {days.name} WHERE {sides.live} GROUP BY",
        "FROM {days.name} WHERE {sides.live} AND bucket_ns >= {sides.from_ns} GROUP BY",
        (REBUILD,),
    ),
    Mutant(
        "`complete_to` without the emitters",
        f"{_CONSUMERS}/figures/completeness.py",
        "instants.append((at_ns, key[1]))",
        "pass",
        (LEDGER,),
    ),
    Mutant(
        "`complete_to` without the partitions",
        f"{_CONSUMERS}/figures/completeness.py",
        "instants.append((books.read_to_ns(projection, partition), None))",
        "pass",
        (LEDGER,),
    ),
    Mutant(
        "a claim not clamped to log time",
        f"{_CONSUMERS}/projections/lane_marks.py",
        "max(min(self.at_ns, self.log_time_ns), self",
        "max(self.at_ns, self",
        (LEDGER, PARTITION),
    ),
    Mutant(
        "an emitter that a projection has not met holds nobody",
        f"{_CONSUMERS}/figures/completeness.py",
        "return min(lane.first_at_ns for lane in books.met[key])",
        "return None",
        (LEDGER, MODEL),
    ),
    Mutant(
        "a closed emitter leaves while it is in flight",
        f"{_CONSUMERS}/figures/completeness.py",
        "if is_caught_up(books, projection, key) or (lane and lane.mark >= books.said[key][0]):",
        "if True:",
        (LEDGER, MODEL),
    ),
    Mutant(
        "an emitter ages in an outage",
        f"{_CONSUMERS}/store/read/books.py",
        "step if step <= _OUTAGE_NS else 0 for step",
        "step for step",
        (ACCOUNT,),
    ),
    Mutant(
        "in flight for ever",
        f"{_CONSUMERS}/figures/completeness.py",
        "if said > mark and is_caught_up(books, projection, key) else list(gaps)",
        "if False else list(gaps)",
        (LEDGER, MODEL),
    ),
    Mutant(
        "lost before the partition was read so far",
        f"{_CONSUMERS}/figures/completeness.py",
        "if said > mark and is_caught_up(books, projection, key) else list(gaps)",
        "if said > mark else list(gaps)",
        (LEDGER, MODEL),
    ),
    Mutant(
        "a claim that steps back believed",
        f"{_CONSUMERS}/projections/rollups.py",
        'tuple(Measure(name, Merge.MAX) for name in ("total", "log_time_ns")),',
        'tuple(Measure(name, Merge.REPLACE) for name in ("total", "log_time_ns")),',
        (ACCOUNT,),
    ),
    Mutant(
        "a rebuild that believes what live workers did not",
        f"{_CONSUMERS}/correct/refold.py",
        "if live is not None and not live.can_reach(first, log_time_ns):",
        "if False:",
        (REBUILD,),
    ),
    Mutant(
        "a part of what was swapped claims all of it",
        f"{_COLLECTOR}/send/lane.py",
        "at_ns if is_last else None, lines[start:end])",
        "at_ns, lines[start:end])",
        (FRAMES,),
    ),
    Mutant(
        "second half of a frame numbered from the first",
        f"{_COLLECTOR}/send/lane.py",
        "encode_frame(frame.birth, frame.first + middle, frame.at_ns, lines[middle:])",
        "encode_frame(frame.birth, frame.first, frame.at_ns, lines[middle:])",
        (FRAMES, SENDER),
    ),
    Mutant(
        "the emitter's clock goes back with the system's",
        f"{_COLLECTOR}/send/buffer.py",
        "self._offset_ns = max(self._offset_ns, time.time_ns() - monotonic_ns)",
        "self._offset_ns = time.time_ns() - monotonic_ns",
        (BUFFER,),
    ),
    Mutant(
        "a claim of now, not of the swap",
        f"{_COLLECTOR}/send/outbox.py",
        "frames = cut(lane.birth, lane.last + 1, filled.at_ns, lines, len(said)) if lines else []",
        "frames = cut(lane.birth, lane.last + 1, time.time_ns() + 10**9, lines, len(said)) if lines else []",
        (BUFFER, SENDER),
    ),
    Mutant(
        "start withheld though its end was refused",
        f"{_COLLECTOR}/send/buffer.py",
        '            if not self._has_room("run.ended", len(line) + LINE_BYTES):',
        '            run.ended = True\n            if not self._has_room("run.ended", len(line) + LINE_BYTES):',
        (BUFFER,),
    ),
    Mutant(
        "starts that gave way after the swap in no report",
        f"{_COLLECTOR}/send/outbox.py",
        "filled.counts.superseded + superseded, filled",
        "filled.counts.superseded, filled",
        (BUFFER,),
    ),
    Mutant(
        "numbers given again after a frame that failed",
        f"{_COLLECTOR}/send/sender.py",
        "            self._link.say_down(failure.reason)",
        "            lane.last -= frame.count",
        (SENDER,),
    ),
    Mutant(
        "a refused frame skipped whole",
        f"{_COLLECTOR}/send/sender.py",
        "            if frame.count == 1:",
        "            if frame.count:",
        (SENDER,),
    ),
    Mutant(
        "given up in memory before it is on disk",
        f"{_COLLECTOR}/send/sender.py",
        "                self._spool.write(lane)\n                self._outbox.note_spooled(lane)",
        "                self._outbox.note_spooled(lane)\n                self._spool.write(lane)",
        (SPOOL,),
    ),
    Mutant(
        "an adopter chooses the partition anew",
        f"{_COLLECTOR}/spool/spool.py",
        'int(facts["partition"]) if facts["partition"] else None',
        "None",
        (SPOOL,),
    ),
    Mutant(
        "frames of any age are sent",
        f"{_COLLECTOR}/spool/replay.py",
        '"expired" if now_ns - frame.closed_at_ns > MAX_AGE_NS else None',
        "None",
        (SPOOL,),
    ),
    Mutant(
        "a spool deleted before its loss is known",
        f"{_COLLECTOR}/spool/replay.py",
        "        await self._sender.say()",
        "        asyncio.ensure_future(self._sender.say())",
        (SPOOL,),
    ),
    Mutant(
        "more hours are deleted than have passed on",
        f"{_CONSUMERS}/store/retention.py",
        '(f"DELETE FROM {hours.name} WHERE {chosen}", parameters),',
        '(f"DELETE FROM {hours.name} WHERE {is_over}", (over_ns, *key)),',
        (COSTS, REBUILD),
    ),
    Mutant(
        "hours pass on twice",
        f"{_CONSUMERS}/store/retention.py",
        '(f"DELETE FROM {hours.name} WHERE {chosen}", parameters),',
        '(f"DELETE FROM {hours.name} WHERE {chosen} AND calls = 0", parameters),',
        (PARTITION,),
    ),
    Mutant(
        "a session goes with the first of its users",
        f"{_CONSUMERS}/store/retention.py",
        "AND (last_at_ns >= ? OR last_log_time_ns >= ?))",
        "AND last_at_ns >= ? AND last_log_time_ns >= ? AND 1 = 0)",
        (PARTITION,),
    ),
    Mutant(
        "an event at fault takes its whole record along",
        f"{_CONSUMERS}/worker/refusal.py",
        "if len(numbers) == 1:",
        "if len(numbers) < 99:",
        (REFUSAL,),
    ),
    Mutant(
        "a sum of two columns loses what is below one unit",
        f"{_CONSUMERS}/projections/rollups.py",
        "divmod(stored[first + index], unit)",
        "(stored[first + index] // unit, 0)",
        (PARTITION,),
    ),
)


def copy_tree(target: Path) -> None:
    """Copies what the tests need."""
    leave_out = shutil.ignore_patterns("__pycache__", ".hypothesis", ".*_cache")
    for folder in _FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=leave_out)
    for file in _FILES:
        shutil.copy2(ROOT / file, target / file)


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """Runs tests in a copy of the tree, without servers.

    Returns:
        The first that failed, empty where none did, and what pytest printed.
    """
    environment = {
        **os.environ,
        # Before the editable install's own paths.
        "PYTHONPATH": os.pathsep.join(str(tree / folder) for folder in ("schemas", "collector", "consumers", "demo")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RUNTAP_MODEL_EXAMPLES": "100",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", "not postgresql", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"(no end within {_TIMEOUT_SECONDS} s)", ""
    if done.returncode == 0:
        return "", done.stdout
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found.group(1) if found else f"(exit code {done.returncode})", done.stdout + done.stderr


def try_mutant(mutant: Mutant, scratch: Path) -> str:
    """Returns:
    The test that caught it; empty where it survived.
    """
    tree = scratch / re.sub(r"\W+", "-", mutant.name)
    copy_tree(tree)
    file = tree / mutant.file
    source = file.read_text()
    if source.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} does not hold this exactly once any more: {mutant.old}")
    file.write_text(source.replace(mutant.old, mutant.new))
    try:
        return run_tests(tree, mutant.tests)[0]
    finally:
        shutil.rmtree(tree)


def main() -> int:
    """Tries all mutants, or those whose names hold one of the arguments."""
    chosen = [mutant for mutant in MUTANTS if any(word in mutant.name for word in sys.argv[1:] or [""])]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="runtap-mutants-") as name:
        scratch = Path(name)
        copy_tree(scratch / "unchanged")
        failed, output = run_tests(
            scratch / "unchanged", tuple(sorted({test for mutant in chosen for test in mutant.tests}))
        )
        if failed:
            print(output[-4_000:])  # noqa: T201
            raise SystemExit(f"{failed} fails without any mutation")
        width = max(len(mutant.name) for mutant in chosen)
        for mutant in chosen:
            began = time.monotonic()
            test = try_mutant(mutant, scratch)
            survivors += not test
            verdict = test.removeprefix("tests/") or "SURVIVED"
            print(f"{mutant.name:{width}}  {time.monotonic() - began:4.0f} s  {verdict}", flush=True)  # noqa: T201
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
