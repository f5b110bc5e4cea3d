"""
JSON lines on standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import orjson


def write_lines(objects: Iterable[dict[str, Any]]) -> None:
    """
    Writes one JSON object a line.
    """
    for one in objects:
        sys.stdout.buffer.write(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE))
