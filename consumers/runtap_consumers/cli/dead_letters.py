"""`runtap dead-letters`: the records that could not be read or applied."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from contextlib import closing
from enum import StrEnum
from typing import Annotated

import typer

from runtap_consumers.cli.options import JsonLines, Limit, takes_settings
from runtap_consumers.cli.printing import print_list
from runtap_consumers.cli.terminal import json_line, opened, say, visible
from runtap_consumers.errors import InputError, KafkaUnavailableError
from runtap_consumers.figures.words import UNKNOWN
from runtap_consumers.settings import ConsumerSettings

dead_letters_app = typer.Typer(help="The records that could not be read or applied.", no_args_is_help=True)
# Partition and offset name a letter to `show` as well, where an id would leave no room for the cause.
_COLUMNS = "id? log_time<19 partition offset value_bytes emitter<12? cause*"


class ExportFormat(StrEnum):
    """What `dead-letters export` writes."""

    JSON = "json"
    RAW = "raw"


@dead_letters_app.command("list")
@takes_settings("database_url", "timezone")
def list_letters(settings: ConsumerSettings, limit: Limit = 50, json: JsonLines = False) -> None:
    """Where they lay and what was wrong with them, the newest first."""
    from runtap_consumers.figures.dead_letters import describe_letter
    from runtap_consumers.store.read.dead_letters import list_dead_letters
    from runtap_consumers.store.read.snapshot import open_reader

    with open_reader(settings.database_url) as snapshot:
        found = [
            {**describe_letter(row, settings.zone()), "value_bytes": row.value_bytes}
            for row in list_dead_letters(snapshot, limit or None)
        ]
    print_list(found, _COLUMNS, "There are no dead letters.", json)


@dead_letters_app.command()
@takes_settings("database_url", "timezone")
def show(
    settings: ConsumerSettings,
    letter: Annotated[str, typer.Argument(metavar="ID", help="As in the list, or partition/offset.")],
) -> None:
    """One of them whole: cause, place and bytes, as text where they are text, else as a hex dump."""
    from runtap_consumers.figures.dead_letters import describe_letter
    from runtap_consumers.store.read.dead_letters import find_dead_letters
    from runtap_consumers.store.read.snapshot import open_reader

    with open_reader(settings.database_url) as snapshot:
        found = find_dead_letters(snapshot, letter)
    if not found:
        raise InputError(f"there is no dead letter {letter!r}: `runtap dead-letters list` names those that are stored")
    for row in found:
        for name, value in describe_letter(row, settings.zone()).items():
            say(f"{name}: {UNKNOWN if value is None else value}")
        for name, content in (("key", row.key), ("value", row.value)):
            say(f"{name}: {'none' if content is None else f'{len(content):,} bytes'}")
            if content:
                say(_readable(content))


@dead_letters_app.command()
@takes_settings("database_url", "timezone")
def export(
    settings: ConsumerSettings,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; -: standard output.")],
    form: Annotated[
        ExportFormat,
        typer.Option("--format", help="json: one object a line, key and value in base64; raw: values, a line each."),
    ] = ExportFormat.JSON,
) -> None:
    """Writes all of them to a file, in the order of the log."""
    from runtap_consumers.figures.dead_letters import describe_letter
    from runtap_consumers.store.read.dead_letters import stream_dead_letters
    from runtap_consumers.store.read.snapshot import open_reader

    if file == "-" and form is ExportFormat.RAW and sys.stdout.isatty():
        raise InputError("raw values can drive a terminal: name a file, or send the output to another program")
    with (
        open_reader(settings.database_url) as snapshot,
        opened(file) as output,
        closing(stream_dead_letters(snapshot)) as rows,  # type: ignore[type-var]
    ):
        count = 0
        for row in rows:
            if form is ExportFormat.RAW:
                output.write((row.value or b"") + b"\n")
            else:
                contents = {"key": _in_base64(row.key), "value": _in_base64(row.value)}
                output.write(json_line({**describe_letter(row, settings.zone()), **contents}))
            count += 1
    say(f"{count:,} dead letters written", err=True)


@dead_letters_app.command()
@takes_settings("bootstrap_servers", "database_url")
def skip(
    settings: ConsumerSettings,
    place: Annotated[str, typer.Argument(metavar="PARTITION/OFFSET", help="Of the record that nobody gets past.")],
) -> None:
    """Steps over a record at which projections stand. Its events count nowhere; the ledger names it as an incident."""
    say(asyncio.run(_skip(settings, place)))


async def _skip(settings: ConsumerSettings, place: str) -> str:
    from runtap_consumers.correct.skip import skip_record
    from runtap_consumers.kafka.errors import KafkaError
    from runtap_consumers.kafka.partition_reader import PartitionReader
    from runtap_consumers.store.engine import open_store

    with open_store(settings.database_url) as store:
        log = PartitionReader(settings, store.events_topic, None, lambda: None)
        try:
            await log.start()
            moved = await skip_record(store, log, place, time.time_ns())
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailableError(
                f"{store.events_topic} on {settings.bootstrap_servers} cannot be read: {error or repr(error)}"
            ) from error
        finally:
            await log.stop()
    return f"{place} is skipped: {', '.join(moved)} go on behind it."


def _in_base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _readable(content: bytes) -> str:
    text = content.decode(errors="replace")
    # An escape in a text could be one that was sent: where something is hidden, every byte is shown.
    if text.encode() == content and visible(text, keep="\n\t") == text:
        return text
    return "\n".join(
        f"{first:08x}  {content[first : first + 16].hex(' '):47}  "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in content[first : first + 16])
        for first in range(0, len(content), 16)
    )
