"""`runtap tail` and `runtap alerts tail`: what is in the stream right now."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.errors import InputError
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import decode_event
from runtap_schemas.topics import alerts_topic, events_topic

RUN_TYPES = ("llm", "chain", "tool", "retriever")
alerts_app = typer.Typer(help="The alerts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="The records as they are, one a line.")]
FromBeginning = Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest record that is kept.")]


@takes_settings("bootstrap_servers", "timezone")
def tail(
    settings: ConsumerSettings,
    session: Annotated[str | None, typer.Option(help="Only events of this session.")] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only these: an event type (run.ended) or a run type (llm). May be repeated."),
    ] = None,
    json: Json = False,
    from_beginning: FromBeginning = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Only the text of streamed answers, as it comes (RUNTAP_STREAM_TOKENS).")
    ] = False,
) -> None:
    """The live stream of events, one line each. Ctrl-C ends it."""
    # The Kafka client takes a moment to load, which other commands need not wait for.
    from runtap_consumers.cli.tail import TailFilter, Tokens, as_json, as_lines, event_types, follow

    known = (*event_types(), *RUN_TYPES)
    unknown = [name for name in types or () if name not in known]
    if unknown:
        raise InputError(f"there is no type {', '.join(map(repr, unknown))}: expected any of {', '.join(known)}")
    if json and tokens:
        raise InputError("--json and --tokens do not go together")
    show = as_json if json else (Tokens if tokens else as_lines)(settings.zone())
    wanted = TailFilter(session, tuple(types or ()))
    _run(follow(settings, events_topic(settings.topic_prefix), decode_event, show, from_beginning, wanted))


@alerts_app.command("tail")
@takes_settings("bootstrap_servers", "timezone")
def tail_alerts(settings: ConsumerSettings, json: Json = False, from_beginning: FromBeginning = False) -> None:
    """Alerts as they are raised, one line each. Ctrl-C ends it."""
    from runtap_consumers.cli.tail import as_json, as_lines, decode_alert, follow

    show = as_json if json else as_lines(settings.zone())
    _run(follow(settings, alerts_topic(settings.topic_prefix), decode_alert, show, from_beginning))


def _run(stream: Coroutine[Any, Any, None]) -> None:
    """Runs until Ctrl-C, or until nobody reads the output any more: both are the way to end it, no failure."""
    configure_logs("warning")
    try:
        asyncio.run(stream)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Python flushes at exit once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
