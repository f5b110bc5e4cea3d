"""The fixtures hand out real servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import sqlalchemy
from aiokafka.admin import AIOKafkaAdminClient


async def test_events_topic_is_made_with_the_wished_partitions(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]]
) -> None:
    name = await events_topic(partitions=3)
    assert name == f"{topic_prefix}.events"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        described = await admin.describe_topics([name])
        assert len(described[0]["partitions"]) == 3
        assert {f"{topic_prefix}.alerts", f"{topic_prefix}.dead-letters"} <= set(await admin.list_topics())
    finally:
        await admin.close()


def test_store_url_is_an_empty_database_of_its_kind(store_url: str) -> None:
    engine = sqlalchemy.create_engine(store_url)
    try:
        assert sqlalchemy.inspect(engine).get_table_names() == []
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (n integer)"))
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
            assert connection.execute(sqlalchemy.text("SELECT n FROM t")).scalar_one() == 1
    finally:
        engine.dispose()
