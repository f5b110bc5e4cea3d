"""What commands write: text for people, JSON for scripts, files.

Of stored text, what could drive the terminal, or hide in it, is shown as an escape.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson
import typer
from rich.console import Console
from rich.text import Text

from runtap_consumers.errors import InputError
from runtap_consumers.private_files import private_opener

# Control, format (bidi, zero width), surrogate, private use and unassigned characters; line and paragraph separators.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters and marks by category, but without a glyph: two names that look the same could differ by them.
_BLANK = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, range(0xE0100, 0xE01F0)))
)

_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def visible(text: str, keep: str = "") -> str:
    r"""A text without what a terminal would obey or not show: `\x1b`, `\u202e` and the like stand in its place.

    Args:
        text: what anybody wrote.
        keep: characters that stay as they are: `\n` where lines are wanted.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if _is_hidden(letter) and letter not in keep else letter
        for letter in text
    )


def one_line(text: str, longest: int | None = None) -> str:
    """A visible text in one line, with one space for any run of white space; cut where it is longer."""
    line = " ".join(visible(text, keep="\t\n\r").split())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def visible_json(line: bytes) -> bytes:
    """JSON of the same value, in which what a terminal would obey is escaped the way JSON does it."""
    if line.isascii() and line.decode().isprintable():
        return line
    # A string that no decoder of ours looked into may hold any byte: one that is no UTF-8 is escaped as well.
    text = line.decode(errors="surrogateescape")
    return "".join(
        json.dumps(letter)[1:-1] if letter not in "\n\r\t" and _is_hidden(letter) else letter for letter in text
    ).encode()


def say(text: str, err: bool = False, end: str = "\n") -> None:
    """Prints a text on standard output, or standard error, as all commands do: nothing in it drives the terminal."""
    typer.echo(visible(text, keep="\n\t") + end, err=err, nl=False)  # noqa: TID251


def write_json(value: Mapping[str, Any], file: str = "-") -> None:
    """Writes one JSON object over lines, to standard output or a file that a person named."""
    with opened(file) as output:
        output.write(visible_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)))


def write_lines(objects: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line."""
    for one in objects:
        sys.stdout.buffer.write(json_line(one))


def json_line(value: Mapping[str, Any]) -> bytes:
    """One JSON object in a line."""
    return visible_json(orjson.dumps(value)) + b"\n"


def write_csv(rows: Iterable[Mapping[str, Any]], leave_out: Collection[str] = ()) -> None:
    """Writes rows as CSV, the keys of the first as its head; lists and objects as JSON."""
    writer: Any = None
    for row in rows:
        if writer is None:
            names = [name for name in row if name not in leave_out]
            writer = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return visible(orjson.dumps(value).decode())
    # A spreadsheet would run what begins like a formula.
    is_formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(value)
    return f"'{visible(value)}" if is_formula else visible(value) if isinstance(value, str) else value


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """A file that a person named for output, readable by its user alone if it is new; -: standard output."""
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


def print_line(console: Console, text: str, style: str = "") -> None:
    """Prints a text as it is, visible and never as markup, wrapped to the console."""
    console.print(Text(visible(text, keep="\n"), style=style))


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN_CATEGORIES or letter in _BLANK
