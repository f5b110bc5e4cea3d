"""Consumer groups, as `runtap doctor` looks at them."""

from __future__ import annotations

from aiokafka.admin import AIOKafkaAdminClient

from runtap_consumers.kafka.client import client_options, running, translated, within
from runtap_schemas import ConnectionSettings

_CALL_SECONDS = 5.0


async def read_groups_at_work(settings: ConnectionSettings, prefix: str, suffix: str) -> list[str]:
    """The names of the consumer groups that have members now, of those that begin and end so."""
    at_work = []
    async with running(AIOKafkaAdminClient(**client_options(settings)), settings) as admin:
        with translated(settings):
            for name, _ in sorted(await within(_CALL_SECONDS, admin.list_consumer_groups())):
                if name.startswith(prefix) and name.endswith(suffix):
                    # One group a call: aiokafka 0.14 reads an answer about several wrongly.
                    (response,) = await within(_CALL_SECONDS, admin.describe_consumer_groups([name]))
                    ((_, _, state, *_),) = response.groups
                    if state not in ("Dead", "Empty"):
                        at_work.append(name)
    return at_work
