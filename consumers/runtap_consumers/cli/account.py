"""`runtap ledger` and `runtap dead-letters`: what became of every event, and what could not be read."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import orjson
import typer

from runtap_consumers.cli.lines import say, write_json, write_lines
from runtap_consumers.cli.options import Limit, takes_settings
from runtap_consumers.cli.terminal import visible, visible_json
from runtap_consumers.errors import InputError
from runtap_consumers.instants import format_instant
from runtap_consumers.private_files import private_opener
from runtap_consumers.settings import ConsumerSettings

if TYPE_CHECKING:
    from runtap_consumers.store.read.snapshot import Snapshot

ledger_app = typer.Typer(help="Where every captured event is.")
dead_letters_app = typer.Typer(help="The records that could not be read.", no_args_is_help=True)


class ExportFormat(StrEnum):
    """What `dead-letters export` writes."""

    JSON = "json"
    RAW = "raw"


@ledger_app.callback(invoke_without_command=True)
@takes_settings("database_url", "timezone")
def ledger(
    settings: ConsumerSettings,
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One JSON object with all of it.")] = False,
) -> None:
    """Where every captured event is: applied, in flight, dropped, lost or unreadable, by service,
    emitter and reason.
    """
    from runtap_consumers.cli.printing_ledger import print_ledger
    from runtap_consumers.figures.ledger_report import build_ledger

    if context.invoked_subcommand is not None:
        return
    with _opened(settings) as snapshot:
        figures = build_ledger(snapshot, settings.zone())
    if json:
        write_json(figures)
    else:
        print_ledger(figures)


@ledger_app.command()
@takes_settings("database_url")
def forget(
    settings: ConsumerSettings,
    emitter: Annotated[str, typer.Argument(metavar="EMITTER", help="Its id, as the ledger shows it.")],
) -> None:
    """Lets an emitter go whose process will not come back: `complete_to` no longer waits for it."""
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.positions import forget_emitter
    from runtap_consumers.store.writer import Writer

    store = open_store(settings.database_url)
    try:
        with Writer.of(store) as writer:
            if not forget_emitter(writer, emitter):
                raise InputError(f"there is no emitter {emitter!r}: `runtap ledger` names those that were heard")
    finally:
        store.close()
    say(f"Emitter {emitter} is forgotten until it is heard again.")


@dead_letters_app.callback()
def dead_letters() -> None:
    """The records that could not be read."""


@dead_letters_app.command("list")
@takes_settings("database_url", "timezone")
def list_letters(
    settings: ConsumerSettings,
    limit: Limit = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Where they lay and what was wrong with them, the newest first."""
    from runtap_consumers.cli.printing_ledger import print_dead_letters
    from runtap_consumers.store.read.dead_letters import list_dead_letters

    zone = settings.zone()
    with _opened(settings) as snapshot:
        found = [
            {**_describe(row, zone), "value_bytes": row.value_bytes}
            for row in list_dead_letters(snapshot, limit or None)
        ]
    if json:
        write_lines(found)
    else:
        print_dead_letters(found)


@dead_letters_app.command()
@takes_settings("database_url", "timezone")
def show(
    settings: ConsumerSettings,
    letter: Annotated[str, typer.Argument(metavar="ID", help="As in the list, or partition/offset.")],
) -> None:
    """One of them whole: cause, place and bytes, as text where they are text, else as a hex dump."""
    from runtap_consumers.store.read.dead_letters import find_dead_letters

    zone = settings.zone()
    with _opened(settings) as snapshot:
        found = find_dead_letters(snapshot, letter)
    if not found:
        raise InputError(f"there is no dead letter {letter!r}: `runtap dead-letters list` names those that are stored")
    for row in found:
        for name, value in _describe(row, zone).items():
            say(f"{name}: {'–' if value is None else value}")
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
    from runtap_consumers.store.read.dead_letters import stream_dead_letters

    if file == "-" and form is ExportFormat.RAW and sys.stdout.isatty():
        raise InputError("raw values can drive a terminal: name a file, or send the output to another program")
    zone = settings.zone()
    count = 0
    with _opened(settings) as snapshot, _target(file) as output, closing(stream_dead_letters(snapshot)) as rows:  # type: ignore[type-var]
        for row in rows:
            output.write(_as_line(row, zone) if form is ExportFormat.JSON else (row.value or b"") + b"\n")
            count += 1
    say(f"{count:,} dead letters written", err=True)


@contextmanager
def _opened(settings: ConsumerSettings) -> Iterator[Snapshot]:
    from runtap_consumers.store.engine import open_store
    from runtap_consumers.store.read.snapshot import open_snapshot

    store = open_store(settings.database_url)
    try:
        with open_snapshot(store) as snapshot:
            yield snapshot
    finally:
        store.close()


@contextmanager
def _target(file: str) -> Iterator[Any]:
    if file == "-":
        yield sys.stdout.buffer
        return
    try:
        with open(file, "wb", opener=private_opener) as output:
            yield output
    except OSError as error:
        raise InputError(
            f"cannot write {file!r}: {error.strerror}. Name another file, or - for standard output"
        ) from error


def _describe(row: Any, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": row.id,
        "partition": row.partition,
        "offset": row.log_offset,
        # The Kafka client gives no time for what it cannot decode itself.
        "log_time": format_instant(row.log_time_ns, zone) if row.log_time_ns else None,
        "cause": row.cause,
        "emitter": row.emitter,
        "sequence": row.sequence,
        "events": row.events,
        "published": bool(row.published),
    }


def _as_line(row: Any, zone: ZoneInfo) -> bytes:
    contents = {
        name: None if content is None else base64.b64encode(content).decode()
        for name, content in (("key", row.key), ("value", row.value))
    }
    return visible_json(orjson.dumps({**_describe(row, zone), **contents})) + b"\n"


def _readable(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = ""
    # An escape in a text could be one that was sent: where something is hidden, every byte is shown.
    if text and visible(text, keep="\n\t") == text:
        return text
    return "\n".join(
        f"{first:08x}  {content[first : first + 16].hex(' '):47}  "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in content[first : first + 16])
        for first in range(0, len(content), 16)
    )
