"""Rules of the house that import-linter cannot see."""

from __future__ import annotations

import re
from pathlib import Path

CONSUMERS = Path(__file__).parents[2] / "consumers" / "runtap_consumers"
ASKS_WHICH_DATABASE = re.compile(
    r"""(==|!=|\bis|\bin)\s*[(\[{]?\s*["'](sqlite|postgresql)["']|is_sqlite|get_backend_name|dialect\.name"""
)


def test_one_module_knows_which_database_a_store_is_in() -> None:
    asking = {
        str(path.relative_to(CONSUMERS))
        for path in CONSUMERS.rglob("*.py")
        if "versions" not in path.parts and ASKS_WHICH_DATABASE.search(path.read_text())
    }
    assert asking == {"store/dialect.py"}
