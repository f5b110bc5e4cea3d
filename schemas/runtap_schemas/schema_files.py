"""JSON Schema of every event type and of alerts, for readers that are not Python.

`python -m runtap_schemas.schema_files` writes them anew after a change of `events`; a test proves them up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from runtap_schemas.alerts import Alert
from runtap_schemas.events import AnyEvent

SCHEMAS: dict[str, type[msgspec.Struct]] = {
    **{str(kind.__struct_config__.tag): kind for kind in AnyEvent.__args__},
    "alert": Alert,
}


def schema_of(name: str) -> dict[str, Any]:
    """The schema of one event type (`run.ended`, …) or of `alert`, as it stands on the wire."""
    schema = msgspec.json.schema(SCHEMAS[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema}


def write_files(folder: Path) -> None:
    """Writes one file a schema."""
    for name in SCHEMAS:
        (folder / f"{name}.json").write_text(json.dumps(schema_of(name), indent=2) + "\n")


if __name__ == "__main__":
    write_files(Path(__file__).with_name("json"))
