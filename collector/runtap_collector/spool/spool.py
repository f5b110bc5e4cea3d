"""Events on disk while Kafka is away: one SQLite file an emitter, adopted by the next process after a crash.

    Sender._spool -> Spool.write          chunks of events that have no number yet
    Replay        -> SpoolFile.renumber   a chunk becomes numbered batches, before their first byte is sent
    Sender        -> SpoolFile.forget     a batch is acknowledged

A file belongs to whoever holds the lock of the file beside it. A chunk's events are numbered once: the transaction that
takes them out puts them back as numbered batches, so whoever comes after a crash sends the same numbers again.
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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cramjam
import msgspec

from runtap_collector.logs import RareLog, log
from runtap_collector.send.lanes import Batch, NumberedEvent
from runtap_collector.send.records import Record
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import events_topic

# Windows has none: without a lock that ends with its process there is no spool, and events wait in memory.
fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

# Half of the least life of a reader's mark: what is sent later might be counted twice.
MAX_AGE_NS = 7 * 24 * 3_600 * 1_000_000_000
_CHUNK_BYTES = 1024 * 1024
_RETRY_SECONDS = 30.0
_COMPRESSION_LEVEL = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, event_count INTEGER NOT NULL, oldest_at_ns INTEGER NOT NULL,
    oldest_monotonic_ns INTEGER NOT NULL, events BLOB NOT NULL
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, emitter TEXT NOT NULL, partition INTEGER NOT NULL, first INTEGER NOT NULL,
    last INTEGER NOT NULL, numbered_at_ns INTEGER NOT NULL, events BLOB NOT NULL
) STRICT;
"""


class SpoolError(Exception):
    """The spool cannot be written or read now: no room, no right, or its limit is reached."""


class SpooledEvent(NamedTuple):
    """An event without a number. `partition`: the one that its trace began with, if that was known."""

    kind: str
    key: bytes
    partition: int | None
    at_ns: int
    body: bytes


class NumberedBatch(NamedTuple):
    """Events that have their numbers, of whichever emitter gave them. `row` is their place in the file."""

    emitter: str
    partition: int
    first: int
    last: int
    numbered_at_ns: int
    events: list[NumberedEvent]
    row: int = 0


def stored_form(batch: Batch, partition: int, numbered_at_ns: int) -> NumberedBatch:
    """A batch as a spool keeps it."""
    return NumberedBatch(batch.emitter, partition, batch.first, batch.last, numbered_at_ns, batch.numbered())


_encode = msgspec.msgpack.Encoder().encode
_decode_events = msgspec.msgpack.Decoder(list[SpooledEvent]).decode
_decode_numbered = msgspec.msgpack.Decoder(list[NumberedEvent]).decode


def _pack(events: Sequence[tuple[object, ...]]) -> bytes:
    return bytes(cramjam.zstd.compress(_encode(events), _COMPRESSION_LEVEL))


class SpoolFile:
    """One file, locked by this process. Used in one thread at a time."""

    def __init__(self, path: Path, lock_descriptor: int) -> None:
        self.path = path
        self._lock_descriptor = lock_descriptor
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.2)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # What is numbered here must be here after a power cut too, or the next process numbers it again.
            self._connection.execute("PRAGMA synchronous = FULL")
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            self.event_count = 0
            self._look()
        except sqlite3.Error as error:
            raise SpoolError(str(error)) from error

    def _look(self) -> None:
        (self.event_count,) = self._connection.execute("SELECT coalesce(sum(event_count), 0) FROM chunks").fetchone()
        self.oldest: tuple[int, int] | None = self._connection.execute(
            "SELECT oldest_at_ns, oldest_monotonic_ns FROM chunks ORDER BY oldest_monotonic_ns LIMIT 1"
        ).fetchone()

    def size_bytes(self) -> int:
        """What it takes on disk."""
        paths = [Path(f"{self.path}{suffix}") for suffix in ("", "-wal")]
        return sum(path.stat().st_size for path in paths if path.exists())

    def facts(self) -> dict[str, str]:
        """What the file says of itself: owner, topic, cluster id, inode and host."""
        return dict(self._connection.execute("SELECT name, value FROM meta"))

    def say(self, **facts: str) -> None:
        """Stores facts."""
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(facts.items()))

    def store(
        self, events: Sequence[SpooledEvent], oldest_monotonic_ns: int, batches: Sequence[NumberedBatch]
    ) -> list[int]:
        """Adds events without numbers and numbered batches, all or none. Returns the rows of the batches."""
        with self._transaction():
            for chunk in _chunks(events):
                oldest_at_ns = min(event.at_ns for event in chunk)
                row = (len(chunk), oldest_at_ns, oldest_monotonic_ns, _pack(chunk))
                self._connection.execute("INSERT INTO chunks VALUES (NULL, ?, ?, ?, ?)", row)
            rows = [self._insert(batch) for batch in batches]
        self._look()
        return rows

    def first_chunk(self) -> tuple[int, list[SpooledEvent]] | None:
        """The oldest events without numbers, and their row."""
        try:
            found = self._connection.execute("SELECT id, events FROM chunks ORDER BY id LIMIT 1").fetchone()
        except sqlite3.Error as error:
            raise SpoolError(str(error)) from error
        return None if found is None else (found[0], _decode_events(cramjam.zstd.decompress(found[1])))

    def renumber(self, chunk: int, batches: Sequence[NumberedBatch]) -> list[int]:
        """Puts numbered batches in the place of a chunk, in one transaction, and returns their rows."""
        with self._transaction():
            rows = [self._insert(batch) for batch in batches]
            self._connection.execute("DELETE FROM chunks WHERE id = ?", (chunk,))
        self._look()
        return rows

    def numbered(self) -> list[NumberedBatch]:
        """All numbered batches, in the order in which their lanes need them."""
        query = "SELECT emitter, partition, first, last, numbered_at_ns, events, id FROM batches"
        return [
            NumberedBatch(
                emitter, partition, first, last, at_ns, _decode_numbered(cramjam.zstd.decompress(events)), row
            )
            for emitter, partition, first, last, at_ns, events, row in self._connection.execute(
                f"{query} ORDER BY emitter, partition, first"
            )
        ]

    def forget(self, row: int) -> None:
        """Takes out a batch that Kafka has, or never will have."""
        with self._transaction():
            self._connection.execute("DELETE FROM batches WHERE id = ?", (row,))

    def set_clocks(self) -> None:
        """Makes the monotonic times those of this boot: another one's say nothing here."""
        with self._transaction():
            self._connection.execute(
                "UPDATE chunks SET oldest_monotonic_ns = ? - max(0, ? - oldest_at_ns)",
                (time.monotonic_ns(), time.time_ns()),
            )
        self._look()

    def count_expired(self, now_ns: int) -> Counter[str]:
        """Counts by kind the events of chunks that are too old."""
        query = "SELECT events FROM chunks WHERE oldest_at_ns < ?"
        expired: Counter[str] = Counter()
        for (events,) in self._connection.execute(query, (now_ns - MAX_AGE_NS,)):
            expired.update(event.kind for event in _decode_events(cramjam.zstd.decompress(events)))
        return expired

    def take_over(self, owner: str, now_ns: int, announcement: NumberedBatch) -> int:
        """Makes another emitter the owner of the events without numbers, but for those that are too old: they go.

        Args:
            owner: the other emitter's id.
            now_ns: the time that was given to `count_expired`.
            announcement: the report that says so. Whoever comes next sends it where its emitter cannot.

        Returns:
            The announcement's row.
        """
        with self._transaction():
            self._connection.execute("UPDATE meta SET value = ? WHERE name = 'owner'", (owner,))
            self._connection.execute("DELETE FROM chunks WHERE oldest_at_ns < ?", (now_ns - MAX_AGE_NS,))
            row = self._insert(announcement)
        self._look()
        return row

    def close(self) -> None:
        """Lets others have the file; one with nothing in it is removed."""
        try:
            queries = ("SELECT 1 FROM chunks LIMIT 1", "SELECT 1 FROM batches LIMIT 1")
            is_empty = not any(self._connection.execute(query).fetchone() for query in queries)
            self._connection.close()
        except sqlite3.Error:
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

    def _insert(self, batch: NumberedBatch) -> int:
        row = (*batch[:5], _pack(batch.events))
        return int(self._connection.execute("INSERT INTO batches VALUES (NULL, ?, ?, ?, ?, ?, ?)", row).lastrowid or 0)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection)


def forgetting(file: SpoolFile, row: int) -> Callable[[], None]:
    """What takes a batch out of a file."""
    return lambda: file.forget(row)


class _Transaction:
    """All or nothing, with SQLite's errors as ours."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise SpoolError(str(error)) from error

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is None:
                self._connection.execute("COMMIT")
                return
        except sqlite3.Error as failure:
            error = failure
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise SpoolError(str(error)) from error


def _chunks(events: Sequence[SpooledEvent]) -> Iterator[list[SpooledEvent]]:
    chunk: list[SpooledEvent] = []
    size_bytes = 0
    for event in events:
        chunk.append(event)
        size_bytes += len(event.body)
        if size_bytes > _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


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
    """The spool of one emitter: its own file, made when it is first needed, and those it adopted."""

    def __init__(self, directory: Path | None, settings: ConnectionSettings, max_bytes: int) -> None:
        """Args:
        directory: where spools of all emitters are, by connection. `None`: there is no spool.
        settings: which Kafka the events are for.
        max_bytes: most that an emitter's own file may hold.
        """
        self._topic = events_topic(settings.topic_prefix)
        place = hashlib.sha256(f"{settings.bootstrap_servers} {self._topic}".encode()).hexdigest()[:12]
        self._directory: Path | None = None
        if directory is not None and fcntl is not None:
            self._directory = directory / f"{self._topic}-{place}"
        self._max_bytes = max_bytes
        self._own: SpoolFile | None = None
        self.adopted: list[SpoolFile] = []
        # What is in them since they were closed.
        self._left_event_count = 0
        self._try_again_at = 0.0
        self._warnings = RareLog()
        self.failures = 0
        # Known once Kafka was reached.
        self.cluster_id = ""

    @property
    def files(self) -> list[SpoolFile]:
        """Its own file, if there is one, and those it adopted."""
        return [*self.adopted, *([] if self._own is None else [self._own])]

    @property
    def event_count(self) -> int:
        """Events in it that have no number."""
        return self._left_event_count + sum(file.event_count for file in self.files)

    @property
    def own_event_count(self) -> int:
        """Likewise, without those of adopted files."""
        return 0 if self._own is None else self._own.event_count

    @property
    def oldest(self) -> tuple[int, int] | None:
        """Times of the oldest of them: by the clock, and monotonic."""
        return min((file.oldest for file in self.files if file.oldest), key=lambda times: times[1], default=None)

    @property
    def is_usable(self) -> bool:
        """Whether it makes sense to try to write."""
        return self._directory is not None and time.monotonic() >= self._try_again_at

    @property
    def has_failed_lately(self) -> bool:
        """Whether it could not be written at the last try."""
        return self.failures > 0 and time.monotonic() < self._try_again_at + _RETRY_SECONDS

    def write(
        self, owner: str, records: Sequence[Record], batches: Sequence[NumberedBatch]
    ) -> list[Callable[[], None]]:
        """Takes records that wait and batches that Kafka may or may not have. All or none.

        Args:
            owner: the emitter's id.
            records: in the order of their capture.
            batches: numbered ones that are in no spool yet.

        Returns:
            For each batch, what takes it out again.

        Raises:
            SpoolError: it could not: they stay where they are.
        """
        if not records and not batches:
            return []
        try:
            own = self._own or self._make(owner)
            if own.size_bytes() + sum(record.size_bytes for record in records) // 4 > self._max_bytes:
                raise SpoolError(f"it holds as much as RUNTAP_SPOOL_BYTES={self._max_bytes} allows")
            events = [SpooledEvent(r.kind, r.route.key_text(), r.route.partition, r.at_ns, r.body) for r in records]
            rows = own.store(events, records[0].monotonic_ns if records else 0, batches)
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
        return [forgetting(own, row) for row in rows]

    def _make(self, owner: str) -> SpoolFile:
        if self._directory is None:
            raise SpoolError("RUNTAP_SPOOL_DIR is off")
        self._refuse_unsafe()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Another may have made it in between.
        self._refuse_unsafe()
        self._directory.chmod(0o700)
        path = self._directory / f"{uuid.uuid4().hex}.spool"
        descriptor = _lock(path)
        if descriptor is None:
            raise SpoolError(f"its lock {_lock_path(path)} cannot be had")
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            own = SpoolFile(path, descriptor)
            own.say(
                owner=owner,
                topic=self._topic,
                cluster_id=self.cluster_id,
                inode=str(path.stat().st_ino),
                host=socket.gethostname(),
            )
        except BaseException:
            os.close(descriptor)
            raise
        self._own = own
        return own

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
        self.cluster_id = cluster_id
        if self._own is not None and self._own.facts()["cluster_id"] != cluster_id:
            self._own.say(cluster_id=cluster_id)

    def find_abandoned(self) -> list[SpoolFile]:
        """Locks and opens the files that no living process holds. Those that belong elsewhere are set aside."""
        found: list[SpoolFile] = []
        if self._directory is None or not self._directory.is_dir():
            return found
        try:
            self._refuse_unsafe()
        except SpoolError as error:
            self._warnings.warn("spool_not_read", path=str(self._directory), reason=str(error))
            return found
        ours = {file.path for file in self.files}
        for path in sorted(self._directory.glob("*.spool")):
            if path in ours or (descriptor := _lock(path)) is None:
                continue
            try:
                file = SpoolFile(path, descriptor)
                facts = file.facts()
            except (SpoolError, sqlite3.Error) as error:
                self._warnings.warn("spool_not_read", path=str(path), reason=str(error))
                os.close(descriptor)
                continue
            if reason := self._why_elsewhere(path, facts):
                file.set_aside(reason)
            else:
                found.append(file)
        return found

    def _why_elsewhere(self, path: Path, facts: dict[str, str]) -> str | None:
        expected = {"topic": self._topic, "inode": str(path.stat().st_ino), "host": socket.gethostname()}
        if facts.get("cluster_id"):
            # Empty: it was made before Kafka had been reached, and nothing in it has a number.
            expected["cluster_id"] = self.cluster_id
        for name, value in expected.items():
            if facts.get(name) != value:
                return f"its {name} is {facts.get(name)!r}, here it is {value!r}: a copy, or from another cluster"
        return None

    def close(self) -> None:
        """Lets the next process have what is left."""
        self._left_event_count = self.event_count
        for file in self.files:
            file.close()
        self._own, self.adopted = None, []

    def leave(self) -> None:
        """In a forked child: leaves the files to the parent."""
        for file in self.files:
            file.leave()
        self._own, self.adopted = None, []
