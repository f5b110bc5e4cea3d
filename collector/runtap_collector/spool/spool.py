"""Closed frames on disk while Kafka is away: one SQLite file an emitter, adopted by another process after a crash.

    Sender -> Spool.write        frames of a lane, before they are given up in memory
    Sender -> SpoolFile.forget   they are acknowledged, or given up for good
    Replay -> Spool.find_abandoned

A file belongs to whoever holds the lock of the file beside it. What is in it has its numbers, so nothing goes wrong
where a frame is sent by two.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import sqlite3
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cramjam

from runtap_collector.logs import RareLog, log
from runtap_collector.send.lane import ClosedFrame, Lane
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import events_topic

# Windows has none: without a lock that ends with its process there is no spool, and events wait in memory.
fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

_RETRY_SECONDS = 30.0
_COMPRESSION_LEVEL = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE frames (
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, said INTEGER NOT NULL, closed_at_ns INTEGER NOT NULL,
    frame BLOB NOT NULL
) STRICT;
"""


class SpoolError(Exception):
    """The spool cannot be written or read now: no room, no right, or its limit is reached."""


class SpoolFile:
    """One file, locked by this process. Used in one thread at a time."""

    def __init__(self, path: Path, lock_descriptor: int, facts: Mapping[str, str] | None = None) -> None:
        """Opens a file, or makes it with what it says of itself: birth, topic, cluster id, partition, inode and host.

        Raises:
            SpoolError: it cannot be opened.
        """
        self.path = path
        self._lock_descriptor = lock_descriptor
        with _translated():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.2)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # What was given up in memory must be here after a power cut too.
            self._connection.execute("PRAGMA synchronous = FULL")
        if facts is not None:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._insert_facts(facts)

    def size_bytes(self) -> int:
        """What it takes on disk."""
        paths = [Path(f"{self.path}{suffix}") for suffix in ("", "-wal")]
        return sum(path.stat().st_size for path in paths if path.exists())

    def facts(self) -> dict[str, str]:
        """What the file says of itself. Nothing: its maker was killed before it was whole."""
        with _translated():
            if not self._has_table("meta"):
                return {}
            return dict(self._connection.execute("SELECT name, value FROM meta"))

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE name = ?"
        return self._connection.execute(query, (name,)).fetchone() is not None

    def say(self, **facts: str) -> None:
        """Stores facts."""
        with self._transaction():
            self._insert_facts(facts)

    def _insert_facts(self, facts: Mapping[str, str]) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))

    def store(self, frames: Sequence[ClosedFrame]) -> None:
        """Adds frames, all or none. One that is there already is the same."""
        rows = [(f.first, f.count, f.said, f.closed_at_ns, _packed(f.value)) for f in frames]
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?)", rows)

    def frames(self, after: int = 0) -> Iterator[ClosedFrame]:
        """The frames that begin after a number, in order."""
        query = "SELECT first, count, said, closed_at_ns, frame FROM frames WHERE first > ? ORDER BY first LIMIT 1"
        while True:
            with _translated():
                row = self._connection.execute(query, (after,)).fetchone()
                if row is None:
                    return
                after, count, said, closed_at_ns, packed = row
                frame = ClosedFrame(after, count, said, closed_at_ns, bytes(cramjam.zstd.decompress(packed)))
            yield frame

    def forget(self, last: int) -> None:
        """Takes out the frames up to a number: Kafka has them, or never will."""
        with self._transaction():
            self._connection.execute("DELETE FROM frames WHERE first <= ?", (last,))

    def count(self) -> int:
        """How many events are in it."""
        with _translated():
            if not self._has_table("frames"):
                return 0
            return int(self._connection.execute("SELECT coalesce(sum(count), 0) FROM frames").fetchone()[0])

    def close(self) -> None:
        """Lets others have the file; one with nothing in it is removed."""
        try:
            is_empty = not self.count()
            self._connection.close()
        except (SpoolError, sqlite3.Error):
            is_empty = False
        if is_empty:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock_descriptor)

    def leave(self) -> None:
        """In a forked child: closes the descriptor and nothing else. To unlock, or to close SQLite, would reach into
        the parent's file.
        """
        os.close(self._lock_descriptor)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))

    def set_aside(self, reason: str) -> None:
        """Puts a file that belongs elsewhere out of everybody's way, loudly."""
        self._connection.close()
        for suffix in ("", "-wal", "-shm"):
            source = Path(f"{self.path}{suffix}")
            if source.exists():
                source.rename(f"{self.path}.set-aside{suffix}")
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock_descriptor)
        log.error(
            "spool_set_aside", path=f"{self.path}.set-aside", reason=reason, consequence="its events are not sent"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def _packed(value: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(value, _COMPRESSION_LEVEL))


@contextmanager
def _translated() -> Iterator[None]:
    """Makes SQLite's errors ours."""
    try:
        yield
    except (sqlite3.Error, cramjam.DecompressionError) as error:
        raise SpoolError(str(error)) from error


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock(path: Path) -> int | None:
    """The descriptor of a spool's lock. `None`: another process holds it, or it went meanwhile."""
    lock_path = _lock_path(path)
    assert fcntl is not None, "there is a spool only where there are locks"
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Locked first, then compared: its owner may have removed it in between, and another may have made it anew.
        if os.fstat(descriptor).st_ino == lock_path.stat().st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


class Spool:
    """This process's files, made when they are first needed, and those it adopted."""

    def __init__(self, directory: Path | None, settings: ConnectionSettings, max_bytes: int) -> None:
        """Args:
        directory: where spools of all emitters are, by connection. `None`: there is no spool.
        settings: which Kafka the events are for.
        max_bytes: most that a process's own files may hold.
        """
        self._topic = events_topic(settings.topic_prefix)
        connection = hashlib.sha256(f"{settings.bootstrap_servers} {self._topic}".encode()).hexdigest()[:12]
        self._directory: Path | None = None
        if directory is not None and fcntl is not None:
            self._directory = directory / f"{self._topic}-{connection}"
        self._max_bytes = max_bytes
        self._own: list[SpoolFile] = []
        self._adopted: list[SpoolFile] = []
        self._try_again_at = 0.0
        self._warnings = RareLog()
        self.failures = 0
        # Known once Kafka was reached.
        self._cluster_id = ""

    @property
    def is_usable(self) -> bool:
        """Whether it makes sense to try to write."""
        return self._directory is not None and time.monotonic() >= self._try_again_at

    @property
    def has_failed_lately(self) -> bool:
        """Whether it could not be written at the last try."""
        return self.failures > 0 and time.monotonic() < self._try_again_at + _RETRY_SECONDS

    def write(self, lane: Lane) -> int:
        """Copies the frames that a lane has in memory to its file. Returns how many events they have.

        Raises:
            SpoolError: it could not: they are where they were.
        """
        frames = list(lane.frames)
        if not frames:
            return 0
        try:
            if lane.file is None:
                lane.file = self._make(lane)
            held_bytes = sum(file.size_bytes() for file in self._own)
            if held_bytes + sum(len(frame.value) for frame in frames) // 4 > self._max_bytes:
                raise SpoolError(f"it holds as much as RUNTAP_SPOOL_BYTES={self._max_bytes} allows")
            lane.file.store(frames)
        except (OSError, SpoolError) as error:
            self.failures += 1
            self._try_again_at = time.monotonic() + _RETRY_SECONDS
            if self._directory is not None:
                self._warnings.warn(
                    "spool_not_written",
                    directory=str(self._directory),
                    reason=str(error),
                    consequence="events wait in memory, up to RUNTAP_BUFFER_BYTES",
                )
            raise SpoolError(str(error)) from error
        return sum(frame.count for frame in frames)

    def _make(self, lane: Lane) -> SpoolFile:
        if self._directory is None:
            raise SpoolError("RUNTAP_SPOOL_DIR is off")
        self._refuse_unsafe()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another may have made it in between.
        self._refuse_unsafe()
        self._directory.chmod(0o700)
        path = self._directory / f"{lane.emitter}-{uuid.uuid4().hex[:8]}.spool"
        descriptor = _lock(path)
        if descriptor is None:
            raise SpoolError(f"its lock {_lock_path(path)} cannot be had")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            facts = {
                "birth": lane.birth,
                "topic": self._topic,
                "cluster_id": self._cluster_id,
                "partition": "" if lane.partition is None else str(lane.partition),
                "inode": str(path.stat().st_ino),
                "host": socket.gethostname(),
            }
            file = SpoolFile(path, descriptor, facts)
        except BaseException:
            os.close(descriptor)
            raise
        self._own.append(file)
        return file

    def _refuse_unsafe(self) -> None:
        """Looks whether events could be led elsewhere, or foreign ones brought here.

        Raises:
            SpoolError: the folder, or that of all spools, is a link or another user's.
        """
        assert self._directory is not None
        # The folder of all spools may be root's, as that of a mounted volume is.
        for folder, owners in ((self._directory.parent, {os.geteuid(), 0}), (self._directory, {os.geteuid()})):
            if not os.path.lexists(folder):
                continue
            status = folder.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise SpoolError(f"{folder} is a link: set RUNTAP_SPOOL_DIR to what it leads to")
            if status.st_uid not in owners:
                raise SpoolError(f"{folder} belongs to another user: set RUNTAP_SPOOL_DIR to a folder of this one's")

    def learn_cluster(self, cluster_id: str) -> None:
        """Notes which cluster the events are for, now that it has been reached."""
        self._cluster_id = cluster_id
        for file in self._own:
            if file.facts()["cluster_id"] != cluster_id:
                file.say(cluster_id=cluster_id)

    def find_abandoned(self, limit: int) -> list[Lane]:
        """Locks and opens files that no living process holds, at most `limit` of them beside those that are open. Those
        that belong elsewhere are set aside.
        """
        found: list[Lane] = []
        if self._directory is None or not self._directory.is_dir():
            return found
        try:
            self._refuse_unsafe()
        except SpoolError as error:
            self._warnings.warn("spool_not_read", path=str(self._directory), reason=str(error))
            return found
        ours = {file.path for file in [*self._own, *self._adopted]}
        for path in sorted(self._directory.glob("*.spool")):
            if len(self._adopted) >= limit:
                break
            if path in ours or (descriptor := _lock(path)) is None:
                continue
            try:
                file = SpoolFile(path, descriptor)
                facts, count = file.facts(), file.count()
            except SpoolError as error:
                self._warnings.warn("spool_not_read", path=str(path), reason=str(error))
                os.close(descriptor)
                continue
            if not facts:
                file.close()
            elif reason := self._why_elsewhere(path, facts):
                file.set_aside(reason)
            else:
                self._adopted.append(file)
                found.append(Lane(facts["birth"], int(facts["partition"]) if facts["partition"] else None, file))
                log.warning("spool_adopted", path=str(path), emitter=found[-1].emitter, events=count)
        return found

    def _why_elsewhere(self, path: Path, facts: dict[str, str]) -> str | None:
        if "birth" not in facts:
            return "an earlier version of runtap made it"
        expected = {"topic": self._topic, "inode": str(path.stat().st_ino), "host": socket.gethostname()}
        if facts["cluster_id"]:
            # Empty: it was made before Kafka had been reached, and nothing of it was sent.
            expected["cluster_id"] = self._cluster_id
        for name, value in expected.items():
            if facts[name] != value:
                return f"its {name} is {facts[name]!r}, here it is {value!r}: a copy, or from another cluster"
        return None

    def drop(self, file: SpoolFile) -> None:
        """Closes a file, and removes it if nothing is in it."""
        for files in (self._own, self._adopted):
            if file in files:
                files.remove(file)
                file.close()

    def close(self) -> None:
        """Lets the next process have what is left."""
        for file in [*self._own, *self._adopted]:
            self.drop(file)

    def leave(self) -> None:
        """In a forked child: leaves the files to the parent."""
        for file in [*self._own, *self._adopted]:
            file.leave()
        self._own, self._adopted = [], []
