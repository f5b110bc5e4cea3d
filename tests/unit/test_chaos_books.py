"""What the chaos test holds against the log, and what it forgives a killed service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chaos.books import settle

_BEGUN, _SAFE, _CLOSED = ({"mark": mark} for mark in ("begun", "safe", "closed"))


def _call(service: str, tokens: int) -> list[Any]:
    return [service, f"{service}-1", "u-1", "llm", "ask", "gpt-4.1", "ok", tokens, 0, 1, True]


def _settle(folder: Path, books: list[list[Any]], logged: list[Any]) -> tuple[list[str], list[Any]]:
    paths = [folder / f"book-{number}.jsonl" for number in range(len(books))]
    (folder / "answers.jsonl").touch()
    for path, lines in (*zip(paths, books, strict=True), (folder / "log.jsonl", [*logged, {"open_runs": 0}])):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    differences, _ = settle(paths, folder / "answers.jsonl", folder / "log.jsonl", folder / "settled.jsonl")
    return differences, [json.loads(line) for line in (folder / "settled.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("logged", "difference"),
    [
        pytest.param([], "not in the log", id="lost"),
        pytest.param([_call("a", 7), _call("a", 7)], "in no book", id="twice"),
        pytest.param([_call("a", 8)], "in no book", id="other tokens"),
    ],
)
def test_a_service_that_closed_is_held_to_its_book(tmp_path: Path, logged: list[Any], difference: str) -> None:
    book = [_BEGUN, _call("a", 7), _CLOSED]
    assert any(line.startswith(difference) for line in _settle(tmp_path, [book], logged)[0])
    assert _settle(tmp_path, [book], [_call("a", 7)]) == ([], [[*_call("a", 7), 1], {"closed": 1, "open": 0}])


def test_a_killed_service_may_lack_only_what_it_wrote_after_its_last_mark(tmp_path: Path) -> None:
    sure, unsure, later = (_call("b", tokens) for tokens in (1, 2, 3))
    book = [_BEGUN, sure, _SAFE, unsure, _BEGUN, later, _CLOSED]
    assert _settle(tmp_path, [book], [sure, later])[0] == []
    assert _settle(tmp_path, [book], [sure, unsure, later])[0] == []
    assert len(_settle(tmp_path, [book], [unsure, later])[0]) == 1
    assert len(_settle(tmp_path, [book], [sure, unsure])[0]) == 1


def test_the_store_has_to_show_what_the_log_retains_of_a_killed_service(tmp_path: Path) -> None:
    book = [_BEGUN, _call("b", 1), _SAFE, _call("b", 2), _call("b", 3)]
    _, settled = _settle(tmp_path, [book, [_BEGUN, _call("a", 7), _CLOSED]], [_call("b", 3), _call("b", 1)])
    assert settled[:-1] == [[*_call("a", 7), 1], [*_call("b", 3), 1], [*_call("b", 1), 1]]
