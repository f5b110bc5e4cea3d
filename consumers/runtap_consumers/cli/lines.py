"""Lines that commands write: text for people and JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson
import typer

from runtap_consumers.cli.terminal import visible, visible_json


def say(text: str, err: bool = False) -> None:
    """Prints a text on standard output, or standard error, as all commands do: nothing in it drives the terminal."""
    typer.echo(visible(text, keep="\n\t"), err=err)  # noqa: TID251


def write_json(value: dict[str, Any]) -> None:
    """Writes one JSON object over lines."""
    sys.stdout.buffer.write(visible_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))


def write_lines(objects: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    for one in objects:
        sys.stdout.buffer.write(visible_json(orjson.dumps(one)) + b"\n")
