"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSUMERS = ROOT / "consumers" / "runtap_consumers"
ASKS_WHICH_DATABASE = re.compile(
    r"""(==|!=|\bis|\bin)\s*[(\[{]?\s*["'](sqlite|postgresql)["']|is_sqlite|get_backend_name|dialect\.name"""
)


def modules() -> list[Path]:
    return [
        path
        for folder in ("schemas", "collector", "consumers", "demo")
        for path in (ROOT / folder).rglob("*.py")
        if "versions" not in path.parts
    ]


def test_one_module_knows_which_database_a_store_is_in() -> None:
    asking = {
        str(path.relative_to(CONSUMERS))
        for path in modules()
        if path.is_relative_to(CONSUMERS) and ASKS_WHICH_DATABASE.search(path.read_text())
    }
    assert asking == {"store/dialect.py"}


def test_no_two_classes_have_one_name() -> None:
    found = Counter(
        node.name
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in found.items() if count > 1] == []


def test_a_ledger_is_looked_for_in_one_module() -> None:
    assert [path.relative_to(ROOT) for path in modules() if path.stem == "ledger"] == [
        Path("consumers/runtap_consumers/figures/ledger.py")
    ]
