"""`runtap dataset`: examples of real runs, or of files, in versions."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from runtap_consumers.cli import printing
from runtap_consumers.cli.options import (
    JsonLines,
    Limit,
    Since,
    Until,
    Wide,
    instant_of,
    takes_run_filter,
    takes_settings,
)
from runtap_consumers.cli.terminal import json_line, opened, say
from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import ENDED_STATUSES, Row
from runtap_consumers.instants import format_instant
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas.topics import events_topic

if TYPE_CHECKING:
    from runtap_consumers.evaluate.datasets import Example
    from runtap_consumers.store.engine import Store

dataset_app = typer.Typer(help="Examples of real runs, to evaluate with.", no_args_is_help=True)
_VERSIONS = "dataset<40 version examples created_at source<40?"
_EXAMPLES = "number inputs* outputs* session_id<16? user_id<16? example_id<12?"
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the dataset.")]
Version = Annotated[int | None, typer.Option(min=1, help="This version; the newest if left out.")]
Add = Annotated[bool, typer.Option("--add", help="Keep the examples of the newest version, too.")]


def opened_store(settings: ConsumerSettings, is_made: bool = False) -> Store:
    """The store; made where there is none, if that is wanted: neither a worker nor Kafka need be there."""
    from runtap_consumers.store.engine import open_store

    topic = events_topic(settings.topic_prefix) if is_made else None
    return open_store(settings.database_url, topic, settings.timezone)


@dataset_app.command("create")
@takes_settings("database_url", "timezone")
@takes_run_filter(ENDED_STATUSES)
def create_dataset(
    settings: ConsumerSettings,
    dataset: Name,
    wanted: dict[str, Any],
    from_runs: Annotated[bool, typer.Option("--from-runs", help="Of runs whose content was captured.")] = False,
    inner: Annotated[bool, typer.Option("--inner", help="Also of runs inside others.")] = False,
    since: Since = None,
    until: Until = None,
    limit: Limit = 1_000,
    add: Add = False,
) -> None:
    """Makes a version of a dataset of runs, the newest first: what went in, and what came out. Of those that are ok,
    unless --status says otherwise.
    """
    from runtap_consumers.evaluate.datasets import find_examples
    from runtap_consumers.store.read.run_filter import RunFilter
    from runtap_consumers.store.read.snapshot import open_snapshot

    if not from_runs:
        raise InputError("say what it is made of: --from-runs, or `runtap dataset import` for a file")
    now_ns = time.time_ns()
    since_ns, until_ns = instant_of(since, settings, now_ns), instant_of(until, settings, now_ns)
    # No answer that failed is a reference, unless it is asked for; and what a model or another run inside of a chain
    # was given is mostly no question of anybody.
    wanted["status"] = wanted["status"] or "ok"
    filtered = RunFilter(**wanted, since_ns=since_ns, until_ns=until_ns, roots=not inner)
    with opened_store(settings) as store:
        with open_snapshot(store) as snapshot:
            found = find_examples(snapshot, filtered, limit or None)
        if not found.examples:
            raise InputError(
                f"of {found.runs:,} runs none has its content: services capture it with RUNTAP_CAPTURE_CONTENT=true"
                if found.runs
                else "no run fits the filters, or they are past retention"
            )
        say(f"{found.runs:,} runs, {found.without_content:,} of them without content.")
        _save(store, dataset, "runs", found.examples, add)


@dataset_app.command("import")
@takes_settings("database_url", "timezone")
def import_dataset(
    settings: ConsumerSettings,
    dataset: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines as LangSmith's examples; -: standard input.")],
    add: Add = False,
) -> None:
    """Makes a version of a dataset of a file: {"inputs": {…}, "outputs": {…}, "metadata": {…}} a line."""
    from runtap_consumers.evaluate.datasets import read_examples

    try:
        if file == "-":
            examples = read_examples(sys.stdin.buffer, "standard input")
        else:
            with open(file, "rb") as lines:
                examples = read_examples(lines, file)
    except OSError as error:
        raise InputError(f"cannot read {file!r}: {error.strerror}") from error
    if not examples:
        raise InputError(f"there is no example in {file!r}")
    with opened_store(settings, is_made=True) as store:
        _save(store, dataset, file, examples, add)


@dataset_app.command("export")
@takes_settings("database_url")
def export_dataset(
    settings: ConsumerSettings,
    dataset: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines; -: standard output.")] = "-",
    version: Version = None,
) -> None:
    """Writes a version of a dataset as JSON lines, as `import` takes them."""
    from runtap_consumers.evaluate.datasets import read_version

    with opened_store(settings) as store:
        _, examples = read_version(store, dataset, version)
    with opened(file) as output:
        for example in examples:
            output.write(json_line({name: getattr(example, name) for name in ("inputs", "outputs", "metadata")}))


@dataset_app.command("list")
@takes_settings("database_url", "timezone")
def list_datasets(settings: ConsumerSettings, json: JsonLines = False) -> None:
    """Datasets, each with its newest version."""
    from runtap_consumers.evaluate.datasets import list_versions

    with opened_store(settings) as store:
        rows = [_version(settings, row) for row in list_versions(store)]
    nothing = "No dataset: `runtap dataset create NAME --from-runs`, or `runtap dataset import NAME FILE`."
    printing.print_list(rows, _VERSIONS, nothing, json)


@dataset_app.command("show")
@takes_settings("database_url", "timezone")
def show_dataset(
    settings: ConsumerSettings,
    dataset: Name,
    version: Version = None,
    limit: Limit = 20,
    wide: Wide = False,
    json: JsonLines = False,
) -> None:
    """The examples of a version, and which versions there are."""
    from runtap_consumers.evaluate.datasets import list_versions, read_version

    with opened_store(settings) as store:
        shown, examples = read_version(store, dataset, version)
        versions = [_version(settings, row) for row in list_versions(store, dataset)]
    rows = [_example(number, example, json) for number, example in enumerate(examples, start=1)]
    if not json:
        printing.print_table(printing.open_console(wide), None, _VERSIONS, versions)
        say(f"\nVersion {shown}:")
    printing.print_list(rows[: limit or None], _EXAMPLES, "All of its examples were removed.", json, wide=wide)


@dataset_app.command("remove-user")
@takes_settings("database_url")
def remove_from_dataset(
    settings: ConsumerSettings,
    dataset: Name,
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose questions they were.")],
) -> None:
    """Removes what came from a user from every version of a dataset, for ever."""
    from runtap_consumers.evaluate.datasets import read_version, remove_user

    with opened_store(settings) as store:
        read_version(store, dataset)
        removed = remove_user(store, dataset, user)
    say(f"{removed:,} examples of user {user} removed from dataset {dataset}, all versions together.")


def _save(store: Store, dataset: str, source: str, examples: list[Example], add: bool) -> None:
    from runtap_consumers.evaluate.datasets import list_versions, read_version, save_version

    if add and any(list_versions(store, dataset)):
        # What is new comes first, and so wins over what was said of the same inputs before.
        examples = [*examples, *read_version(store, dataset)[1]]
    version, kept, left_out = save_version(store, dataset, source, examples)
    twice = f"; {left_out:,} with the same inputs as another were left out" if left_out else ""
    say(f"Dataset {dataset}, version {version}: {kept:,} examples{twice}.")


def _version(settings: ConsumerSettings, row: dict[str, Any]) -> Row:
    at = format_instant(row.pop("created_at_ns"), settings.zone())
    return {**row, "created_at": at}


def _example(number: int, example: Example, as_json: bool) -> Row:
    values = {name: getattr(example, name) for name in ("inputs", "outputs", "metadata")}
    known = {name: example.metadata.get(name) for name in ("session_id", "user_id", "run_id")}
    texts = values if as_json else {name: orjson.dumps(value).decode() for name, value in values.items()}
    return {"number": number, "example_id": example.id, **texts, **known}
