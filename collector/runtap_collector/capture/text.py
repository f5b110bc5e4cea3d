"""Foreign text and values made to fit the contract's limits: what breaks one would be a dead letter."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from runtap_collector.send.records import MetadataValues
from runtap_schemas.events import MAX_METADATA_KEYS, MAX_METADATA_LENGTH, MAX_NAME_LENGTH, MAX_TAGS

# Prefixes of the metadata keys that LangChain and LangGraph set for themselves.
_INTERNAL_PREFIXES = ("ls_", "langgraph_", "checkpoint_", "lc_", "__")
_INT64 = 2**63


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, with lone surrogates replaced, which JSON in UTF-8 cannot hold."""
    if len(text) > limit:
        text = text[:limit]
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def text_of(value: object) -> str | None:
    """The text of any foreign value. `None`: it has none: too many digits, nested too deeply, or its `__str__` raises,
    whatever that may be.
    """
    try:
        return str.__str__(str(value))
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        let_signals_pass(error)
        return None


def attribute_of(value: object, name: str) -> Any:
    """A foreign object's attribute. `None`: it has none, or raises."""
    try:
        return getattr(value, name, None)
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        let_signals_pass(error)
        return None


def let_signals_pass(error: BaseException) -> None:
    """Raises again what a signal's handler may have raised, anywhere in the main thread, and there only: for
    whoever calls a foreign object's methods and catches everything.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit) and threading.current_thread() is threading.main_thread():
        raise error


def name_of(value: object) -> str | None:
    """A name from a foreign value. `None`: there is none."""
    if value is None:
        return None
    text = value if type(value) is str else text_of(value)
    return clip(text, MAX_NAME_LENGTH) if text else None


def own_keys(metadata: Mapping[Any, Any]) -> tuple[str, ...]:
    """The metadata keys that are the user's, and not LangChain's or LangGraph's. Few sets, so they are cached."""
    keys = tuple(metadata)
    try:
        return _own_keys(keys)
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        # A key whose comparison raises is no plain text.
        let_signals_pass(error)
        return tuple(key for key in keys if type(key) is str and not key.startswith(_INTERNAL_PREFIXES))


@lru_cache(maxsize=1_024)
def _own_keys(keys: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if isinstance(key, str) and not key.startswith(_INTERNAL_PREFIXES))


def clip_tags(tags: Iterable[object]) -> list[str]:
    """The first tags that fit."""
    texts = (tag if type(tag) is str else _text_of_subclass(tag) for tag in tags)
    return [clip(text, MAX_NAME_LENGTH) for text in texts if text is not None][:MAX_TAGS]


def _text_of_subclass(value: object) -> str | None:
    """The characters of what is a string, though of another class, whatever that makes of them. `None`: it is none."""
    return str.__str__(value) if issubclass(type(value), str) else None


def add_metadata(kept: MetadataValues, metadata: Mapping[Any, Any]) -> None:
    """Adds the user's own scalar values to `kept`, up to the limit of keys."""
    for key in own_keys(metadata):
        value: Any = metadata.get(key)
        kind = type(value)
        if kind is str:
            value = clip(value, MAX_METADATA_LENGTH)
        elif kind is int:
            if not -_INT64 <= value < _INT64:
                text = text_of(value)
                if text is None:
                    continue
                value = clip(text, MAX_METADATA_LENGTH)
        elif kind is float:
            if not math.isfinite(value):
                value = str(value)
        elif kind is not bool:
            text = _text_of_subclass(value)
            if text is None:
                continue
            value = clip(text, MAX_METADATA_LENGTH)
        if len(kept) >= MAX_METADATA_KEYS and key not in kept:
            continue
        kept[clip(key, MAX_METADATA_LENGTH)] = value


def first_value(source: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The first value of these keys that is not empty."""
    for key in keys:
        value = source.get(key)
        if value:
            return value
    return None
