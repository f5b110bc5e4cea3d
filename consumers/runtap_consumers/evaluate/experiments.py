"""Experiments and their answers' scores: the statements, and what they come to."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import orjson
from sqlalchemy import select

from runtap_consumers.errors import InputError
from runtap_consumers.evaluate.intervals import paired_difference
from runtap_consumers.instants import average_dollars, dollars, seconds
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer

# An answer is good when all of its scores are at least that.
GOOD = 0.5


class Experiment(NamedTuple):
    """The columns of `experiments`."""

    experiment: str
    prefix: str
    number: int
    dataset: str
    version: int
    target: str
    evaluators: str
    repetitions: int
    git_commit: str | None
    started_at_ns: int
    finished_at_ns: int | None = None


class ExampleResult(NamedTuple):
    """The columns of `experiment_results` but the first. `scores` and `models` are JSON."""

    example_id: str
    repetition: int
    session_id: str | None
    run_id: str
    scores: str
    error: str | None
    models: str
    latency_ns: int
    input_tokens: int
    output_tokens: int
    cost_picodollars: int | None
    evaluator_cost_picodollars: int | None


_PLACES = ", ".join("?" * len(tables.experiments.columns))
_RESULT_PLACES = ", ".join("?" * len(tables.experiment_results.columns))


def begin_experiment(
    store: Store,
    prefix: str,
    dataset: str,
    version: int,
    target: str,
    evaluators: str,
    repetitions: int,
    commit: str | None,
) -> Experiment:
    """A new experiment, under the next number of its prefix."""
    with Writer.of(store) as writer, writer.transaction():
        ((last,),) = writer.query("SELECT max(number) FROM experiments WHERE prefix = ?", (prefix,))
        number = (last or 0) + 1
        what = (dataset, version, target, evaluators, repetitions, commit)
        begun = Experiment(f"{prefix}-{number}", prefix, number, *what, time.time_ns())
        writer.execute(f"INSERT INTO experiments VALUES ({_PLACES})", begun)
    return begun


def resume_experiment(
    store: Store, prefix: str, dataset: str, version: int, target: str, evaluators: str
) -> Experiment | None:
    """The last experiment of a prefix over a dataset, where it is not finished; `None`: nothing is left of it.

    Raises:
        InputError: it was begun with something else than this.
    """
    last = next((found for found in list_experiments(store, dataset) if found.prefix == prefix), None)
    if last is None or last.finished_at_ns is not None:
        return None
    if (last.version, last.target, last.evaluators) != (version, target, evaluators):
        raise InputError(
            f"{last.experiment} was begun with version {last.version}, {last.target} and evaluators {last.evaluators}: "
            "name these, or leave --resume out"
        )
    return last


def save_result(writer: Writer, experiment: str, result: ExampleResult) -> None:
    """Writes an answer and its scores, once and for all."""
    with writer.transaction():
        writer.execute(
            f"INSERT INTO experiment_results VALUES ({_RESULT_PLACES}) ON CONFLICT DO NOTHING", (experiment, *result)
        )


def finish_experiment(writer: Writer, experiment: str) -> None:
    """Notes that nothing is left to answer."""
    with writer.transaction():
        writer.execute("UPDATE experiments SET finished_at_ns = ? WHERE experiment = ?", (time.time_ns(), experiment))


def list_experiments(store: Store, dataset: str | None = None) -> list[Experiment]:
    """Experiments, the newest first."""
    columns = tables.experiments.c
    statement = select(tables.experiments).order_by(columns.started_at_ns.desc(), columns.number.desc())
    with store.read() as connection:
        wanted = statement if dataset is None else statement.where(columns.dataset == dataset)
        return [Experiment(*row) for row in connection.execute(wanted)]


def find_experiment(store: Store, name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        InputError: there is none.
    """
    for found in list_experiments(store):
        if found.experiment == name:
            return found
    raise InputError(f"there is no experiment {name!r}: `runtap experiments list` names those there are")


def read_results(store: Store, experiment: str) -> list[ExampleResult]:
    """What is scored of an experiment."""
    columns = tables.experiment_results.c
    statement = select(tables.experiment_results).where(columns.experiment == experiment)
    with store.read() as connection:
        rows = connection.execute(statement.order_by(columns.example_id, columns.repetition))
        return [ExampleResult(*row[1:]) for row in rows]


def summarise(
    experiment: Experiment,
    results: Sequence[ExampleResult],
    against: Experiment | None,
    others: Sequence[ExampleResult],
) -> dict[str, Any]:
    """What an experiment came to, beside another one: the object that `--json` prints."""
    scores, before = _by_key(results), _by_key(others)
    rows = []
    for key, by_example in sorted(scores.items()):
        values = [value for each in by_example.values() for _, value in each]
        row: dict[str, Any] = {"key": key, "mean": fmean(values), "answers": len(values)}
        # Every score is a chance to see a difference that is none.
        rows.append({**row, **_difference(by_example, before.get(key, {}), comparisons=len(scores))})
    good = sum(_is_good(result) for result in results)
    cost = _total(result.cost_picodollars for result in results)
    return {
        "experiment": experiment.experiment,
        "dataset": experiment.dataset,
        "version": experiment.version,
        "target": experiment.target,
        "models": sorted({model for result in results for model in orjson.loads(result.models)}),
        "git_commit": experiment.git_commit,
        "is_finished": experiment.finished_at_ns is not None,
        "against": against and against.experiment,
        "answers": len(results),
        "errors": sum(result.error is not None for result in results),
        "scores": rows,
        "good_answers": good,
        "cost_usd": dollars(cost),
        "cost_per_good_answer_usd": None if cost is None else average_dollars(cost, good),
        "evaluator_cost_usd": dollars(_total(result.evaluator_cost_picodollars for result in results)),
        "latency_p50_seconds": seconds(median(result.latency_ns for result in results)) if results else None,
        "input_tokens": sum(result.input_tokens for result in results),
        "output_tokens": sum(result.output_tokens for result in results),
    }


_Scores = Mapping[str, list[tuple[str | None, float]]]


def _by_key(results: Iterable[ExampleResult]) -> dict[str, dict[str, list[tuple[str | None, float]]]]:
    """Scores by key and example, each with its session."""
    found: dict[str, dict[str, list[tuple[str | None, float]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for key, score in orjson.loads(result.scores).items():
            found[key][result.example_id].append((result.session_id, score))
    return found


def _difference(ours: _Scores, theirs: _Scores, comparisons: int) -> dict[str, Any]:
    pairs = [
        (ours[each][0][0] or each, fmean(score for _, score in ours[each]) - fmean(score for _, score in theirs[each]))
        for each in ours
        if each in theirs
    ]
    return paired_difference(pairs, comparisons)._asdict()


def _is_good(result: ExampleResult) -> bool:
    scores = orjson.loads(result.scores).values()
    return bool(scores) and result.error is None and min(scores) >= GOOD


def _total(amounts: Iterable[int | None]) -> int | None:
    known = list(amounts)
    return None if None in known else sum(amount for amount in known if amount is not None)
