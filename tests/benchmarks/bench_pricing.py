"""What pricing one call costs, once its model is known.

python tests/benchmarks/bench_pricing.py [--rounds 9]
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from measurement import print_machine, spread
from rich.console import Console

from runtap_consumers.pricing import PriceTable
from runtap_schemas import Usage

_CALLS = 100_000
_NOW_NS = 1_795_132_800 * 10**9
_SHAPES = {
    "gpt-4o-mini, cached and reasoning tokens": (
        ("openai", "gpt-4o-mini"),
        Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=200, reasoning_tokens=40),
    ),
    "claude-sonnet-4-5, 210,000 tokens, cache reads and writes": (
        ("anthropic", "claude-sonnet-4-5"),
        Usage(input_tokens=210_000, output_tokens=100, cache_read_tokens=200_000, cache_write_5m_tokens=900),
    ),
    "gpt-4o, with a web search": (("openai", "gpt-4o"), Usage(input_tokens=1_000, output_tokens=100, web_searches=1)),
    "a model nobody knows": (("openai", "unheard-of"), Usage(input_tokens=1_000, output_tokens=100)),
}


def main(rounds: Annotated[int, typer.Option(min=1)] = 9) -> None:
    """Prints microseconds of CPU a call, for calls of several shapes."""
    console = Console()
    print_machine(console, "runtap", "genai-prices")
    table = PriceTable.load()
    console.print(f"Microseconds of CPU a call, {rounds} rounds of {_CALLS:,}: median (minimum to maximum)")
    for name, ((provider, model), usage) in _SHAPES.items():
        table.price(provider, model, usage, _NOW_NS)
        measured = []
        for _ in range(rounds):
            began = time.process_time()
            for number in range(_CALLS):
                table.price(provider, model, usage, _NOW_NS + number)
            measured.append((time.process_time() - began) / _CALLS * 1e6)
        console.print(f"  {name}: {spread(measured)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
