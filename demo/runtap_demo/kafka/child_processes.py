"""Child processes that never outlive this one, whatever ends it.

On Linux the kernel kills a child when the *thread* that forked it ends, so all are forked by one thread that lives as
long as the process. Elsewhere a `kill -9` of this process leaves its children running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtap_demo.errors import ChildEndedError

_LAST_LINES = 15

# Runs between fork and the program, instead of a preexec_fn, which may deadlock in a process with threads. 1 is
# PR_SET_PDEATHSIG, 9 is SIGKILL; the parent may have died before the call.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runtap-spawner")


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program that dies with this process.

    It is a process group of its own, so that Ctrl-C reaches this process alone, which then ends the others in order.

    Args:
        log: file that its output is appended to.
        folder: its working folder; `None` for this process's.
        environment: variables set or changed for it.
    """
    arguments = [str(part) for part in command]
    if sys.platform == "linux":
        arguments = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *arguments]

    def fork() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                process_group=0,
            )

    return _spawner.submit(fork).result()


@dataclass(frozen=True)
class Child:
    """A running program of the demo, under the name that people know it by."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises:
        ChildEndedError: it has ended, whatever its exit code.
        """
        if (code := self.process.poll()) is not None:
            raise self.failed(f"ended with exit code {code}")

    def wait(self, timeout_seconds: float) -> None:
        """Waits for its end.

        Raises:
            ChildEndedError: it ended with another exit code than 0, or did not end in time and was killed.
        """
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code != 0:
            raise self.failed(f"ended with exit code {code}")

    def failed(self, what: str) -> ChildEndedError:
        """The error that says so, with the end of its log."""
        return ChildEndedError(self.name, what, self.log, last_lines(self.log))


def end(processes: Iterable[subprocess.Popen[bytes]], timeout_seconds: float) -> None:
    """Ends processes together: asks, waits, and kills those that are still there after `timeout_seconds`.

    With a timeout of 0 they are killed at once.
    """
    running = [process for process in processes if process.poll() is None]
    for process in running:
        if timeout_seconds > 0:
            process.terminate()
            # A suspended process would never see the signal.
            process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + timeout_seconds
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_lines(log: Path) -> str:
    """The end of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-_LAST_LINES:]) or "(empty)"
