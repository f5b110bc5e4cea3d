"""`runtap` commands called in the test's own process: a second of imports less for each."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from runtap_consumers import cli


def call_command(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Calls a command as if it were a process: what it printed, and the code that it would have ended with.

    Not for commands that handle signals or run until they are ended.

    Args:
        arguments: the words after `runtap`.
        environment: all of the variables that it sees.
        folder: where it runs; `None`: here.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape") for _ in range(2)]
    out, err = streams
    with _process_state(environment, folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        before = sys.argv, sys.stdin
        sys.argv, sys.stdin = ["runtap", *arguments], io.StringIO()
        # A thread of its own: commands run event loops, and so may the test.
        with ThreadPoolExecutor(1) as thread:
            try:
                code = thread.submit(_run).result()
            finally:
                sys.argv, sys.stdin = before
    texts = []
    for stream in streams:
        stream.flush()
        assert isinstance(stream.buffer, io.BytesIO)
        texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
    return subprocess.CompletedProcess(["runtap", *arguments], code, *texts)


def _run() -> int:
    try:
        cli.run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def _process_state(environment: Mapping[str, str], folder: Path | None) -> Iterator[None]:
    """What a process has of its own: variables, working folder, logging."""
    variables, root, here = dict(os.environ), logging.getLogger(), Path.cwd()
    handlers, level, configured = root.handlers, root.level, structlog.get_config()
    try:
        os.environ.clear()
        os.environ.update(environment)
        if folder is not None:
            os.chdir(folder)
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(variables)
        root.handlers, root.level = handlers, level
        structlog.configure(**configured)
