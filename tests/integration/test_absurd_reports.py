"""What breaks the contract's limits on its way from Kafka into the store: a dead letter with its
number, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import msgspec
import orjson
from sqlalchemy import create_engine, text

from runtap_schemas import Event, encode_event
from samples import framed, id_of, model_call, report
from worker_process import WorkerSetting, numbered, produce

LONG_NUMBER = int("9" * 20)


def changed(event: Event, number: int, **changes: object) -> bytes:
    return framed([msgspec.json.encode({**orjson.loads(encode_event(event)), **changes})], "e1/0", number)


async def test_report_with_a_number_of_20_digits_is_a_dead_letter_and_the_ledger_goes_on(
    kafka: str, events_topic: Callable[..., Awaitable[str]], setting: WorkerSetting
) -> None:
    topic = await events_topic(partitions=1)
    values = [
        changed(model_call(), 1),
        changed(report(), 2, dropped={"full": {"run.ended": LONG_NUMBER}}),
        changed(model_call(), 3, metadata={"n": LONG_NUMBER}),
        changed(report(), 4, process_id=LONG_NUMBER),
        changed(report(), 5),
    ]
    await produce(kafka, topic, [(0, value, []) for value in values])
    setting.drain()
    # And the next batch, over what the store keeps of this one.
    await produce(kafka, topic, numbered([model_call()], partitions=1, first=5))
    setting.drain()
    engine = create_engine(setting.store_url)
    with engine.connect() as connection:
        letters = connection.execute(text("SELECT emitter, sequence FROM dead_letters ORDER BY log_offset"))
        assert [tuple(row) for row in letters] == [(id_of("e1/0"), 2), (id_of("e1/0"), 3), (id_of("e1/0"), 4)]
        marks = connection.execute(text("SELECT DISTINCT mark, quarantined, gaps FROM lane_marks"))
        assert [tuple(row) for row in marks] == [(6, 3, "[]")]
        positions = connection.execute(text("SELECT DISTINCT next_offset FROM positions"))
        assert [tuple(row) for row in positions] == [(6,)]
    engine.dispose()
    done = setting.run("ledger", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quarantined"] == 3
