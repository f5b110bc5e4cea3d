"""How long what nobody should notice takes to start: the help of a command, and the import of the collector.

Each round starts all processes once, so that whatever else the machine does meets all alike; ratios are taken within a
round. CPU beside the time by the clock, which other processes lengthen.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from measurement import print_machine, spread
from rich.console import Console

# By the clock, and of CPU.
Times = tuple[float, float]

_LIBRARIES = ["-c", "import typer, rich, sqlalchemy"]
_HELP = ["-m", "runtap_consumers", "report", "--help"]
# In one process, since of two the difference would be lost in the noise.
_COLLECTOR = """
import json, time
at = [(time.perf_counter(), time.process_time())]
import langchain_openai
at.append((time.perf_counter(), time.process_time()))
import runtap_collector
at.append((time.perf_counter(), time.process_time()))
print(json.dumps(at))
"""


def start(arguments: list[str]) -> Times:
    """Milliseconds from the start of a Python process to its end."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took * 1e3, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def load() -> tuple[Times, Times]:
    """Milliseconds that an app's import of LangChain's OpenAI models takes, and that of the collector after it."""
    done = subprocess.run([sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE, check=True)
    began, loaded, ended = json.loads(done.stdout)
    app, collector = (
        ((after[0] - before[0]) * 1e3, (after[1] - before[1]) * 1e3)
        for before, after in ((began, loaded), (loaded, ended))
    )
    return app, collector


def print_compared(console: Console, unit: str, one: str, another: str, pairs: list[tuple[float, float]]) -> None:
    """Two lines of milliseconds, and their ratio."""
    for name, values in ((one, [pair[0] for pair in pairs]), (another, [pair[1] for pair in pairs])):
        console.print(f"{name:32}{spread(values, ',.0f')} ms {unit}")
    console.print(f"{'':32}{spread([second / first for first, second in pairs])} times\n")


def main() -> None:
    """Measures, and prints both comparisons."""
    parser = argparse.ArgumentParser(description="start times")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    console = Console(highlight=False, width=150)
    print_machine(console, "runtap", "typer", "rich", "SQLAlchemy", "langchain-openai", "pydantic-settings")
    # The first start of each may write bytecode.
    start(_LIBRARIES)
    start(_HELP)
    load()
    commands, imports = [], []
    for _ in range(arguments.rounds):
        commands.append((start(_LIBRARIES), start(_HELP)))
        imports.append(load())
    for which, unit in enumerate(("by the clock", "of CPU")):
        helps = [(libraries[which], shown[which]) for libraries, shown in commands]
        print_compared(console, unit, "import typer, rich, sqlalchemy", "runtap report --help", helps)
        added = [(app[which], collector[which]) for app, collector in imports]
        print_compared(console, unit, "import langchain_openai", "then import runtap_collector", added)


if __name__ == "__main__":
    main()
