"""What both benchmarks print: the machine, the versions, and median, minimum and maximum of what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console

_CPU_FILE = Path("/proc/cpuinfo")


def print_machine(console: Console, *packages: str) -> None:
    """Prints processor, cores, load, Python and the versions of packages."""
    lines = _CPU_FILE.read_text().splitlines() if _CPU_FILE.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    console.print(
        f"{processor}, {os.cpu_count()} cores{load}, {platform.system()} {platform.release()}", soft_wrap=True
    )
    shown = ", ".join(f"{package} {version(package)}" for package in packages)
    console.print(f"Python {platform.python_version()}, {shown}\n", soft_wrap=True)


def spread(values: Sequence[float], form: str = ",.2f") -> str:
    """Median, and in brackets minimum and maximum."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
