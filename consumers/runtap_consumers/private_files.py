"""Files that hold what users said or paid are made for their user alone; one that exists keeps its mode."""

from __future__ import annotations

import os


def private_opener(path: str, flags: int) -> int:
    """The `opener` of `open` for them."""
    return os.open(path, flags, 0o600)
