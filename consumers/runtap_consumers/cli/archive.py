"""An archive of the stream: every event with whatever content it has, one JSON object a line, in
files of bounded size.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Self

from runtap_consumers.cli.tail import Decoded, json_line
from runtap_consumers.errors import InputError
from runtap_consumers.kafka.record_tail import Record
from runtap_consumers.private_files import private_opener


class Archive(RotatingFileHandler):
    """Appends to a file. Before it outgrows `max_bytes` it becomes FILE.1, the one before FILE.2,
    up to `kept_files`.
    """

    def __init__(self, path: Path, max_bytes: int, kept_files: int) -> None:
        """Raises:
        InputError: the file cannot be written.
        """
        self._path = path
        try:
            # Latin-1 carries bytes as they are, and makes the lengths that are compared those in bytes.
            super().__init__(path, maxBytes=max_bytes, backupCount=kept_files, encoding="latin-1")
            self._end_half_line()
        except OSError as error:
            raise self._refusal(error) from error

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=private_opener)

    def _end_half_line(self) -> None:
        """Keeps what a full disk cut off from spoiling the next line."""
        if self._path.is_file() and self._path.stat().st_size:
            with self._path.open("rb+") as written:
                written.seek(-1, os.SEEK_END)
                if written.read(1) != b"\n":
                    written.write(b"\n")

    def __call__(self, record: Record, event: Decoded) -> None:
        """Appends an event, and hands the whole line to the system at once: a killed process leaves no half of one.

        Raises:
            InputError: the file cannot be written any more.
        """
        line = json_line(record, event).decode("latin-1")
        try:
            self.emit(logging.makeLogRecord({"msg": line}))
        except OSError as error:
            raise self._refusal(error) from error

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        """Raises what went wrong: `logging` would print it and go on."""
        raise

    def _refusal(self, error: OSError) -> InputError:
        return InputError(f"cannot write {str(self._path)!r}: {error.strerror}. Name another file, or make room")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Every line was flushed: what a full disk had to say was said then.
        with suppress(OSError):
            self.close()
