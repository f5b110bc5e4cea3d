"""Files that hold what users said or paid are made for their user alone, one that exists keeps its mode; and files that
hold a secret.
"""

from __future__ import annotations

import os
from pathlib import Path


def private_opener(path: str, flags: int) -> int:
    """The `opener` of `open` for them."""
    return os.open(path, flags, 0o600)


def read_secret(path: str) -> str:
    """The first line of a file, without spaces around it.

    Raises:
        ValueError: it cannot be read, or there is nothing in it.
    """
    try:
        secret = Path(path).read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not secret:
        raise ValueError("is empty")
    return secret
