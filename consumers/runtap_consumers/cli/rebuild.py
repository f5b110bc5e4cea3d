"""`runtap rebuild`: a projection's figures made anew of the log."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import check_known, takes_settings
from runtap_consumers.cli.printing import print_list
from runtap_consumers.cli.terminal import say
from runtap_consumers.errors import KafkaUnavailableError
from runtap_consumers.instants import EXPECTED, format_instant, local_time, parse_instant
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings

if TYPE_CHECKING:
    from runtap_consumers.correct.rebuild import FigureDifference


@takes_settings("bootstrap_servers", "database_url", "cost_by")
def rebuild(
    settings: ConsumerSettings,
    projection: Annotated[str, typer.Argument(metavar="PROJECTION", help=f"One of {', '.join(PROJECTIONS)}.")],
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help=f"Replace only days from this one on: {EXPECTED}.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
) -> None:
    """Folds the retained log again, and puts the figures in the place of the old ones at once. Workers may run.

    Days of which Kafka does not hold everything any more stay as they are. It may be ended at any moment, and goes on
    when it is started again.
    """
    check_known("projection", [projection], PROJECTIONS)
    configure_logs("warning" if dry_run else settings.log_level)
    say(asyncio.run(_run(settings, projection, since, dry_run)))


async def _run(settings: ConsumerSettings, projection: str, since: str | None, dry_run: bool) -> str:
    from runtap_consumers.correct.rebuild import rebuild as run_rebuild
    from runtap_consumers.kafka.errors import KafkaError
    from runtap_consumers.kafka.partition_reader import PartitionReader
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.engine import open_store
    from runtap_schemas.topics import events_topic

    topic = events_topic(settings.topic_prefix)
    prices = load_prices(settings)
    # First as a reader, who makes no store where there is none.
    open_store(settings.database_url).close()
    store = open_store(settings.database_url, topic)
    log = PartitionReader(settings, topic, None, lambda: None)
    try:
        since_ns = parse_instant(since, store.zone, time.time_ns()) if since else 0
        await log.start()
        watch_client_log(is_silent=False)
        done = await run_rebuild(store, projection, log, prices, settings, since_ns, is_dry_run=dry_run)
        replaced = f"from {format_instant(done.from_ns, store.zone)} on" if done.from_ns else "all that there is"
        if dry_run:
            rows = [_difference(one, store.zone) for one in done.differences]
            print_list(rows, "table day measure before after difference", "A rebuild would change nothing.")
            return f"{replaced}, {done.records:,} records read; no figure has changed."
        return f"{projection} was rebuilt: {replaced}, of {done.records:,} records."
    except (KafkaError, TimeoutError) as error:
        raise KafkaUnavailableError(
            f"{topic} on {settings.bootstrap_servers} cannot be read: {error or repr(error)}. "
            "Nothing has changed; start again"
        ) from error
    finally:
        await log.stop()
        store.close()


def _difference(difference: FigureDifference, zone: ZoneInfo) -> dict[str, Any]:
    day = None if difference.day_ns is None else f"{local_time(difference.day_ns, zone):%Y-%m-%d}"
    return {**difference._asdict(), "day": day, "difference": f"{difference.after - difference.before:+,}"}
