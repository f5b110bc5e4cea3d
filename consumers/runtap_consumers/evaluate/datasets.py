"""Datasets in versions, each a list of examples without two of the same inputs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import orjson
from sqlalchemy import func, select

from runtap_consumers.errors import InputError
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.traces import read_contents
from runtap_consumers.store.read.window_sums import EVALUATION
from runtap_consumers.store.writer import Writer

_RUNS_A_READ = 500
_INSERT = "INSERT INTO {} VALUES ({})"


class Example(NamedTuple):
    """What goes in, what should come out (`None`: nobody says), and what is known of it. `id`: hash of the inputs."""

    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any] | None
    metadata: dict[str, Any]

    @property
    def session_id(self) -> str | None:
        """The session that it came from: answers to questions of one are no independent witnesses."""
        return _text(self.metadata, "session_id")


class Found(NamedTuple):
    """Examples of runs, and how many runs were looked at, and lacked what went in."""

    examples: list[Example]
    runs: int
    without_content: int


def make_example(inputs: Any, outputs: Any, metadata: Mapping[str, Any]) -> Example:
    """An example; values that are no objects become the only field of one, as LangSmith has it."""
    inputs = inputs if isinstance(inputs, dict) else {"input": inputs}
    if outputs is not None and not isinstance(outputs, dict):
        outputs = {"output": outputs}
    canonical = orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS)
    return Example(hashlib.sha256(canonical).hexdigest()[:32], inputs, outputs, dict(metadata))


def read_examples(lines: Iterable[bytes], name: str) -> list[Example]:
    """Examples of JSON lines.

    Raises:
        InputError: a line is none; the message has its number.
    """
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{name}, line {number} is no JSON: {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("inputs"), dict):
            raise InputError(
                f'{name}, line {number}: expected {{"inputs": {{…}}, "outputs": {{…}}, "metadata": {{…}}}}'
            )
        outputs, metadata = value.get("outputs"), value.get("metadata") or {}
        if not isinstance(outputs, dict | None) or not isinstance(metadata, dict):
            raise InputError(f"{name}, line {number}: outputs and metadata are objects, where they are there")
        examples.append(make_example(value["inputs"], outputs, metadata))
    return examples


def find_examples(snapshot: Snapshot, wanted: RunFilter, limit: int | None) -> Found:
    """Examples of the runs that are wanted, the newest first, as far as their content was captured."""
    examples, runs = [], 0
    with closing(stream_runs(snapshot, wanted, None, limit)) as rows:
        # What an evaluation asked is nobody's question.
        asked = (row for row in rows if row["environment"] != EVALUATION)
        while page := list(islice(asked, _RUNS_A_READ)):
            contents = read_contents(snapshot, [row["run_id"] for row in page])
            runs += len(page)
            for row in page:
                content = contents.get(row["run_id"], {})
                if content.get("inputs") is not None:
                    known = {name: row[name] for name in ("run_id", "session_id", "user_id") if row[name]}
                    examples.append(make_example(content["inputs"], content.get("outputs"), known))
    return Found(examples, runs, runs - len(examples))


def save_version(store: Store, name: str, source: str, examples: Iterable[Example]) -> tuple[int, int, int]:
    """Writes the next version of a dataset. Of examples with the same inputs the first is kept.

    Returns:
        The version, how many examples it has, and how many were left out.
    """
    given = list(examples)
    kept: dict[str, Example] = {}
    for example in given:
        kept.setdefault(example.id, example)
    with Writer.of(store) as writer, writer.transaction():
        ((newest,),) = writer.query("SELECT max(version) FROM dataset_versions WHERE dataset = ?", (name,))
        version = (newest or 0) + 1
        writer.execute(_INSERT.format("dataset_versions", "?, ?, ?, ?"), (name, version, time.time_ns(), source))
        for number, example in enumerate(kept.values(), start=1):
            texts = (orjson.dumps(each).decode() for each in (example.inputs, example.outputs, example.metadata))
            about = (_text(example.metadata, each) for each in ("run_id", "user_id", "session_id"))
            row = (name, version, number, example.id, *texts, *about)
            writer.execute(_INSERT.format("dataset_examples", ", ".join("?" * len(row))), row)
    return version, len(kept), len(given) - len(kept)


def read_version(store: Store, name: str, version: int | None = None) -> tuple[int, list[Example]]:
    """A version of a dataset, the newest if `None`, and its examples in their order.

    Raises:
        InputError: there is none.
    """
    versions, examples = tables.dataset_versions.c, tables.dataset_examples.c
    with store.read() as connection:
        known = connection.execute(select(versions.version).where(versions.dataset == name)).scalars().all()
        if not known:
            raise InputError(f"there is no dataset {name!r}: `runtap dataset list` names those there are")
        wanted = max(known) if version is None else version
        if wanted not in known:
            raise InputError(f"dataset {name!r} has no version {version}: its versions are 1 to {max(known)}")
        rows = connection.execute(
            select(examples.example_id, examples.inputs, examples.outputs, examples.metadata)
            .where(examples.dataset == name, examples.version == wanted)
            .order_by(examples.number)
        )
        return wanted, [Example(row[0], *map(orjson.loads, row[1:])) for row in rows]


def list_versions(store: Store, name: str | None = None) -> Iterator[dict[str, Any]]:
    """The newest version of each dataset, by name; all versions of one that is named, the newest first."""
    versions, examples = tables.dataset_versions.c, tables.dataset_examples.c
    count = (
        select(func.count())
        .where(examples.dataset == versions.dataset, examples.version == versions.version)
        .scalar_subquery()
        .label("examples")
    )
    statement = select(tables.dataset_versions, count).order_by(versions.dataset, versions.version.desc())
    with store.read() as connection:
        rows = connection.execute(statement if name is None else statement.where(versions.dataset == name)).mappings()
        seen = None
        for row in rows.all():
            if name is not None or row["dataset"] != seen:
                yield dict(row)
            seen = row["dataset"]


def remove_user(store: Store, name: str, user_id: str) -> int:
    """Removes the examples that came from a user from every version of a dataset; how many they were."""
    with Writer.of(store) as writer, writer.transaction():
        return writer.execute("DELETE FROM dataset_examples WHERE dataset = ? AND user_id = ?", (name, user_id))


def _text(metadata: Mapping[str, Any], name: str) -> str | None:
    value = metadata.get(name)
    return None if value is None else str(value)
