"""Works every rollup out again from what was captured; prints each difference. Imports nothing of runtap.

python oracle.py STORE_URL SETTLED_FILE        lines of an emitter's book, each with its count: books.py
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

# Picodollars a token: input, input from the cache, output.
PRICES = {"gpt-4o-mini-2024-07-18": (150_000, 75_000, 600_000), "gpt-4.1-2025-04-14": (2_000_000, 500_000, 8_000_000)}
TOKENS = "sum(input_tokens), sum(cache_read_tokens), sum(output_tokens)"
MONEY = "sum(cost_microdollars) * 1000000 + sum(cost_picodollars)"
GRAINS = ("minute", "hour", "day", "total")
COST = f"sum(calls), sum(priced_calls), {TOKENS}, {MONEY}"
COUNTS = "sum(count), sum(ok), sum(errors), sum(output_tokens)"
SESSION = "sum(starts), sum(ends), sum(traces), sum(llm_calls), sum(tool_calls), sum(errors)"
RUN = "service, run_type, name, model, status, session_id"
# An hour's rows go to its day when it is over.
ATTRIBUTED = (
    "(SELECT * FROM cost_by_attribute_hour UNION ALL SELECT * FROM cost_by_attribute_day) AS costs "
    "JOIN cost_keys ON cost_keys.id = costs.cost_key"
)
# What was worked out -> the store's tables of it, their keys, their figures.
QUESTIONS = [
    ("cost", f"cost_{{grain}}; {ATTRIBUTED} WHERE attribute = 'root'", "model, service", COST),
    ("user", f"{ATTRIBUTED} WHERE attribute <> 'root'", "value, model, service", COST),
    ("session cost", "session_costs", "session_id", COST),
    ("performance", "performance_{grain}", "service, run_type, name, model", COUNTS),
    ("roots", "roots_{grain}", "service", "sum(ok), sum(errors)"),
    ("errors", "errors_{grain}; error_groups", "service", "sum(count)"),
    ("session", "sessions", "session_id, service", f"{SESSION}, sum(input_tokens), sum(output_tokens)"),
    ("session user", "sessions WHERE user_id <> ''", "session_id, user_id", "1"),
    ("runs", "runs", RUN, f"count(*), count(DISTINCT run_id), {TOKENS}, sum(cost_picodollars)"),
    ("closed", "emitter_reports", "", "sum(closing)"),
    # As readers take it: a start that came after its run's end says nothing.
    ("open", "open_runs WHERE run_id NOT IN (SELECT run_id FROM runs)", "", "count(*)"),
    ("none", "skipped_types; skewed_events; dead_letters; log_incidents; strays", "", "count(*)"),
]


def work_out(lines: Iterable[Any]) -> dict[str, dict[tuple[str, ...], list[int]]]:
    found: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(dict, none={(): [0]})

    def add(table: str, key: tuple[str, ...], *amounts: int) -> None:
        row = found[table].get(key, [0] * len(amounts))
        found[table][key] = [a + b * count for a, b in zip(row, amounts, strict=True)]

    for line in lines:
        if isinstance(line, dict):
            found.update({name: {(): [count]} for name, count in line.items()})
            continue
        service, session, user, kind, name, model, status, used, cached, output, is_root, count = line
        found["session user"][session, user] = [1]
        begins, ends, failed = kind == "session.started", kind == "session.ended", status == "error"
        is_call, prices = kind == "llm", PRICES.get(model, (0,) * 3)
        amounts = (used, cached, output, (used - cached) * prices[0] + cached * prices[1] + output * prices[2])
        add("session", (session, service), begins, ends, is_root, is_call, kind == "tool", failed, used, output)
        if begins or ends:
            continue
        for table, key in (("cost", (model, service)), ("user", (user, model, service)), ("session cost", (session,))):
            if is_call:
                add(table, key, 1, model in PRICES, *amounts)
        add("performance", (service, kind, name, model), 1, not failed, failed, output)
        add("runs", (service, kind, name, model, status, session), 1, 1, *amounts)
        if is_root:
            add("roots", (service,), not failed, failed)
        if failed:
            add("errors", (service,), 1)
    return found


def main() -> int:
    with Path(sys.argv[2]).open() as file:
        wanted, differences = work_out(map(json.loads, file)), list[str]()
    with create_engine(sys.argv[1]).connect() as connection:
        for name, tables, keys, figures in QUESTIONS:
            width = len(keys.split(", ")) if keys else 0
            asked = f"{keys}, {figures} FROM {{}} GROUP BY {keys}" if keys else f"{figures} FROM {{}}"
            for table in sorted({table.format(grain=grain) for table in tables.split("; ") for grain in GRAINS}):
                rows = connection.execute(text(f"SELECT {asked.format(table)}"))
                found = {tuple(v or "" for v in row[:width]): [int(v or 0) for v in row[width:]] for row in rows}
                for key in sorted({*found, *wanted[name]}):
                    if found.get(key) != wanted[name].get(key):
                        differences.append(f"{table} {key}: not {wanted[name].get(key)} but {found.get(key)}")
        runs = sum(row[0] for row in wanted["runs"].values())
        for grain in GRAINS[:3]:
            blobs = connection.execute(text(f"SELECT sketch FROM performance_{grain}"))
            sketched = sum(word & 0xFFFFF for (blob,) in blobs for word in memoryview(bytes(blob)).cast("I"))
            differences += [f"sketches {grain}: not {runs} but {sketched}"] if sketched != runs else []
    print("\n".join([*differences, json.dumps({"runs": runs, "differences": len(differences)})]))  # noqa: T201
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
