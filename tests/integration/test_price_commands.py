"""`runtap prices` as a process, and a worker whose prices change while it runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from cost_sql import COST_SUM
from runtap_consumers.projections.rollups import TOKEN_CLASSES
from runtap_consumers.store.engine import open_store
from samples import START_NS, model_call
from worker_process import WorkerSetting, numbered, produce, wait_until

OWN = '[[price]]\nprovider = "openai"\nmodel = "gpt-4o-mini*"\ninput = "1"\noutput = "{}"\n'


@pytest.fixture
def setting(tmp_path: Path) -> WorkerSetting:
    return WorkerSetting("127.0.0.1:1", "test", f"sqlite:///{tmp_path}/runtap.db")


def test_check_names_file_key_and_value(setting: WorkerSetting, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(OWN.format("2").replace("*", ""))
    done = setting.run("prices", "check", str(file))
    assert done.returncode == 0
    assert "right: 1 prices" in done.stdout
    file.write_text(OWN.format("-2"))
    done = setting.run("prices", "check", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"runtap: {file}: price 1, output: output = '-2'")
    assert len(done.stderr.splitlines()) == 1


def test_show_prints_own_and_listed_prices(setting: WorkerSetting, tmp_path: Path) -> None:
    done = setting.run("prices", "show", "gpt-4o-mini", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (rows[0]["price_class"], rows[0]["input"], rows[0]["cache_read"]) == ("standard", "0.15", "0.075")
    assert not rows[0]["is_own"]
    file = tmp_path / "prices.toml"
    file.write_text(OWN.format("2"))
    setting.more["RUNTAP_PRICES"] = str(file)
    done = setting.run("prices", "show", "gpt-4o-mini", "--provider", "openai", "--json")
    own = json.loads(done.stdout.splitlines()[0])
    assert (own["is_own"], own["input"], own["cache_read"], own["output"]) == (True, "1", "1", "2")
    # Its maker is known without being named, so what the file says of it counts.
    assert "your own terms over the table" in setting.run("prices", "show", "gpt-4o-mini").stdout
    assert "the table as runtap corrects it" in setting.run("prices", "show", "claude-mythos-5").stdout
    done = setting.run("prices", "show", "deepseek-v4-pro", "--json")
    windows = [json.loads(line)["price_class"] for line in done.stdout.splitlines()]
    assert len(windows) == len(set(windows)) == 4
    done = setting.run("prices", "show", "gpt-4o-minni", "--provider", "openai")
    assert done.returncode == 2
    assert "openai/gpt-4o-mini" in done.stderr


def test_unmatched_lists_models_without_a_price(store_url: str, setting: WorkerSetting) -> None:
    setting.store_url = store_url
    store = open_store(store_url, "test.events", "UTC")
    with store.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO positions VALUES ('cost', 0, 0, 1, 1, 0, 0, '', 0, 0)",
            )
        )
        tokens = dict.fromkeys(TOKEN_CLASSES, 0) | {"input_tokens": 100, "output_tokens": 10}
        for provider, model, unpriced, price_class in (
            ("openai", "gpt-4o-minni", 6, "standard"),
            ("openai", "gpt-4o-mini", 5, "standard"),
            # Known, and its tier is not: a repricing would change nothing.
            ("openai", "gpt-4o", 4, "turbo"),
            ("host:llm.example.com", "gpt-4o", 3, "standard"),
            ("openrouter", "openai/gpt-4o", 2, "standard"),
            ("openai", "gpt-4.1", 1, "flex/impossible"),
            ("openai", "fine", 0, "standard"),
        ):
            names = ("bucket_ns", "provider", "model", "price_class", "unpriced_calls", *tokens)
            values = (START_NS, provider, model, price_class, unpriced, *tokens.values())
            for table, skipped in (("cost_total", 1), ("cost_hour", 0)):
                connection.execute(
                    text(
                        f"INSERT INTO {table} ({', '.join(names[skipped:])}, service, environment, price_set, "
                        "partition, generation, calls, priced_calls, unmetered_calls, cached_calls, "
                        "cost_microdollars, cost_picodollars) "
                        f"VALUES (:{', :'.join(names[skipped:])}, 's', 'e', 'p', 0, 0, 9, 0, 0, 0, 0, 0)"
                    ),
                    dict(zip(names, values, strict=True)),
                )
    store.close()
    done = setting.run("prices", "unmatched", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["model"], row["is_known"], row["repriceable_calls"]) for row in rows] == [
        ("gpt-4o-minni", False, 0),
        ("gpt-4o-mini", True, 5),
        ("gpt-4o", True, 0),
        ("gpt-4o", False, 0),
        ("openai/gpt-4o", False, 0),
        ("gpt-4.1", True, 0),
    ]
    assert [row["impossible_calls"] for row in rows] == [0, 0, 0, 0, 0, 1]
    assert "openai/gpt-4o-mini" in rows[0]["nearest"]
    shown = setting.run("prices", "unmatched").stdout
    for advice in ("reprice prices 5 of them", "no price for what they used", "llm.example.com", "had no bill"):
        assert advice in " ".join(shown.split()), shown
    # It does what the list says, and nothing else.
    assert setting.run("reprice", "--from", "2020-01-01", "--yes").returncode == 0
    left = [json.loads(line) for line in setting.run("prices", "unmatched", "--json").stdout.splitlines()]
    assert [row["model"] for row in left] == [row["model"] for row in rows if not row["repriceable_calls"]]


def test_update_takes_newer_data_from_a_file(setting: WorkerSetting, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("{}")
    assert setting.run("prices", "update", "--from-file", str(file)).returncode == 2
    model = {"id": "newest", "match": {"equals": "newest"}, "prices": {"input_mtok": 3, "output_mtok": 4}}
    file.write_text(json.dumps([{"id": "openai", "name": "OpenAI", "api_pattern": "x", "models": [model]}]))
    done = setting.run("prices", "update", "--from-file", str(file))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prices.json").exists()
    assert "3" in setting.run("prices", "show", "openai/newest").stdout


async def test_a_running_worker_takes_changed_prices_and_keeps_them_when_a_file_breaks(
    kafka: str,
    topic_prefix: str,
    events_topic: Callable[..., Awaitable[str]],
    tmp_path: Path,
    processes: list[Any],
) -> None:
    setting = WorkerSetting(kafka, topic_prefix, f"sqlite:///{tmp_path}/runtap.db")
    file = tmp_path / "prices.toml"
    setting.more["RUNTAP_PRICES"] = str(file)
    file.write_text(OWN.format("1"))
    topic = await events_topic(partitions=3)
    log = tmp_path / "worker.log"
    processes.append(setting.start(log))

    def call_again(first: int) -> Any:
        now = time.time_ns()
        events = [model_call(now, run_id=f"run-{first + number}") for number in range(30)]
        return produce(kafka, topic, numbered(events, first=first))

    def costs() -> dict[str, tuple[int, int]]:
        engine = create_engine(setting.store_url)
        try:
            with engine.connect() as connection:
                query = f"SELECT price_set, sum(calls), {COST_SUM} FROM cost_total GROUP BY 1"
                return {row[0]: (row[1], row[2]) for row in connection.execute(text(query))}
        except Exception as error:
            if "cost_total" not in str(error):
                raise
            return {}
        finally:
            engine.dispose()

    def total() -> int:
        return sum(calls for calls, _ in costs().values())

    await call_again(0)
    await asyncio.to_thread(wait_until, lambda: total() == 30, 30, "the first calls")
    file.write_text(OWN.format("2"))
    await asyncio.to_thread(wait_until, lambda: "prices_reloaded" in log.read_text(), 15, "other prices")
    await call_again(30)
    await asyncio.to_thread(wait_until, lambda: total() == 60, 30, "the second calls")
    file.write_text("[[price]]\n")
    await asyncio.to_thread(wait_until, lambda: "prices_refused" in log.read_text(), 15, "the refusal")
    await call_again(60)
    await asyncio.to_thread(wait_until, lambda: total() == 90, 30, "the third calls")
    assert sorted(costs().values()) == [(30, 30 * 1_100 * 10**6), (60, 60 * 1_200 * 10**6)]
    assert log.read_text().count("prices_refused") == 1
