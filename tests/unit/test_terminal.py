"""What stored text looks like on a terminal."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runtap_consumers.cli.terminal import one_line, print_line, visible, visible_json

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Grüße, 你好\u3000世界, é, ❤️", "plain, Grüße, 你好\u3000世界, é, ❤️"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\x9b2Jb\x7fc\x00", r"a\x9b2Jb\x7fc\x00"),
        ("invoice\u202efdp.exe\u2069", r"invoice\u202efdp.exe\u2069"),
        ("ad\u200bmin\u2060\ufeff\u00ad", r"ad\u200bmin\u2060\ufeff\xad"),
        ("tag\U000e0041 and\U000e0100", r"tag\U000e0041 and\U000e0100"),
        ("filler\u3164\u115f\uffa0\u2800", r"filler\u3164\u115f\uffa0\u2800"),
        ("half\udc9b", r"half\udc9b"),
        ("a\nb\tc", r"a\nb\tc"),
    ],
)
def test_what_drives_a_terminal_or_hides_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_are_kept_where_they_are_wanted_and_joined_where_not() -> None:
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert one_line("  a\r\n\tb \u2028 c\x1c") == r"a b \u2028 c\x1c"


@given(st.text())
def test_nothing_hidden_is_left_and_showing_twice_changes_nothing(text: str) -> None:
    shown = visible(text)
    assert not [letter for letter in shown if unicodedata.category(letter) in HIDDEN]
    assert visible(shown) == shown


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_has_the_same_value_and_nothing_hidden(value: object) -> None:
    written = json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogatepass")
    # Lone surrogates are no UTF-8: what is read back of them is not what was meant, as for any other decoder.
    is_unicode = all(not 0xD800 <= ord(letter) < 0xE000 for letter in json.dumps(value, ensure_ascii=False))
    shown = visible_json(written).decode()
    assert not [letter for letter in shown if letter != "\n" and unicodedata.category(letter) in HIDDEN]
    if is_unicode:
        assert json.loads(shown) == value


def test_bytes_that_are_no_text_are_escaped_in_json() -> None:
    assert visible_json(b'{"more":"\x9b2J\x1b"}') == rb'{"more":"\udc9b2J\u001b"}'


def test_a_line_is_never_markup_and_keeps_no_code() -> None:
    screen = Console(width=40, file=io.StringIO(), force_terminal=True, color_system="standard")
    print_line(screen, "[red]a[/] :warning: \x1b]0;title\x07", style="bold")
    assert isinstance(screen.file, io.StringIO)
    assert screen.file.getvalue() == "\x1b[1m[red]a[/] :warning: \\x1b]0;title\\x07\x1b[0m\n"
