"""The files of the page: small, of this repository, and without a way to read text as markup."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "consumers/runtap_consumers/serve/page"
VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
OURS = [path for path in sorted(PAGE.rglob("*")) if path.is_file() and path.parent.name != "vendor"]


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file()) <= 300_000
    assert sum(len(path.read_text().splitlines()) for path in OURS) <= 2_800


def test_what_is_vendored_is_as_it_was_released_and_has_its_licence() -> None:
    folder = PAGE / "vendor"
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in VENDORED} == VENDORED
    assert "Leon Sorokin" in (folder / "uPlot.LICENSE.txt").read_text()


def test_nothing_reads_text_as_markup_or_comes_from_elsewhere() -> None:
    for path in OURS:
        text = path.read_text()
        found = re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|DOMParser", text)
        assert found is None, (path.name, found)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
    # What the Content-Security-Policy would refuse.
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", (PAGE / "index.html").read_text())


def test_every_module_is_loaded_at_once() -> None:
    preloaded = set(re.findall(r'rel="modulepreload" href="([^"]+)"', (PAGE / "index.html").read_text()))
    assert preloaded == {str(path.relative_to(PAGE)) for path in OURS if path.suffix == ".js"} - {"main.js"}


def test_everything_that_is_said_is_said_in_both_languages_and_used() -> None:
    words = (PAGE / "words.js").read_text()
    names = re.findall(r'^  "?([\w. ]+)"?: \[', words, re.MULTILINE)
    assert len(names) == len(set(names)) > 200
    scripts = "".join(path.read_text() for path in OURS if path.name != "words.js")
    said = set(re.findall(r'["`]([\w.]+)["`]', scripts + words))
    # Names that are put together: `view.${name}`.
    made = {f"{prefix}." for prefix in re.findall(r"`([\w.]+)\.\$\{", scripts)} | {"cut.", "status."}
    assert [name for name in names if name not in said and not name.startswith(tuple(made))] == []
