"""`runtap evaluate`, `experiments`: from real questions to what a good answer costs."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from runtap_consumers.cli import printing
from runtap_consumers.cli.dataset import Name, Version, opened_store
from runtap_consumers.cli.options import (
    JsonLines,
    JsonObject,
    Limit,
    Wide,
    takes_settings,
)
from runtap_consumers.cli.terminal import one_line, print_line, say, write_json
from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import UNKNOWN, Row, duration, money
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.settings import ConsumerSettings

if TYPE_CHECKING:
    from langchain_core.rate_limiters import BaseRateLimiter

    from runtap_consumers.evaluate.experiments import ExampleResult, Experiment
    from runtap_consumers.store.engine import Store

experiments_app = typer.Typer(help="What prompts scored, and what a good answer cost.", no_args_is_help=True)
_EXPERIMENTS = "experiment<40 dataset<24 version target<40? git_commit<10? started_at finished_at?"
_SCORES = "score<40 mean answers difference interval least_seen verdict*"
_RESULTS = "example_id<12 repetition? scores* latency_seconds cost_usd error<40?* run_id?"
_REASONS, _LONGEST_REASON = 5, 300
_RATE = re.compile(r"(\d+)/(s|min|h)")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3_600}
ExperimentId = Annotated[str, typer.Argument(metavar="ID", help="Of an experiment, as its list has it.")]


@takes_settings("database_url", "prices")
def evaluate(
    settings: ConsumerSettings,
    dataset: Name,
    target: Annotated[
        str, typer.Option(metavar="MODULE:NAME", help="A Runnable, or a function of inputs; sync or async.")
    ],
    evaluators: Annotated[
        str, typer.Option(metavar="MODULE:NAME,…", help="Functions that score; a name alone is one of runtap's own.")
    ],
    prefix: Annotated[str | None, typer.Option(help="Of the experiment's name; the target's if left out.")] = None,
    version: Version = None,
    repeat: Annotated[int, typer.Option(min=1, max=1_000, help="So often each example.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="So many at once.")] = 4,
    rate: Annotated[str | None, typer.Option(metavar="N/min", help="At most so many calls: 60/min, 5/s.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="EXPERIMENT", help="Compare with this one, not the last of the dataset.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", metavar="KEY=MEAN", help="Exit with 1 below it. May be repeated.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last experiment of this prefix that is not finished.")
    ] = False,
    json: JsonObject = False,
) -> None:
    """Runs a target over a dataset, scores its answers, and says what a good one costs. Needs no worker."""
    from runtap_consumers.evaluate.datasets import read_version
    from runtap_consumers.evaluate.experiments import (
        begin_experiment,
        find_experiment,
        finish_experiment,
        read_results,
        resume_experiment,
        save_result,
    )
    from runtap_consumers.evaluate.runner import Evaluation, run_experiment
    from runtap_consumers.evaluate.scoring import load_evaluator
    from runtap_consumers.evaluate.targets import TappedCalls, load_target
    from runtap_consumers.pricing.source import load_prices
    from runtap_consumers.store.writer import Writer

    wanted, pace = _minimums(minimum or []), None if rate is None else pace_of(rate)
    paths = [path.strip() for path in evaluators.split(",") if path.strip()]
    prefix = prefix or re.split("[.:]", target)[-1]
    found, judges, prices = load_target(target), [load_evaluator(path) for path in paths], load_prices(settings)
    with opened_store(settings, is_made=True) as store:
        against = against and find_experiment(store, against).experiment
        version, examples = read_version(store, dataset, version)
        what = (prefix, dataset, version, target, orjson.dumps(paths).decode())
        experiment = resume_experiment(store, *what) if resume else None
        experiment = experiment or begin_experiment(store, *what, repeat, _commit())
        scored = {result[:2] for result in read_results(store, experiment.experiment)}
        tasks = [
            (example, repetition)
            for repetition in range(1, experiment.repetitions + 1)
            for example in examples
            if (example.id, repetition) not in scored
        ]
        calls = TappedCalls(settings, prices)
        evaluation = Evaluation(experiment.experiment, prefix, found, judges, calls, concurrency, pace)
        with Writer.of(store) as writer, _progress(experiment.experiment, len(scored), len(tasks)) as step:
            save = partial(save_result, writer, experiment.experiment)
            try:
                not_scored = asyncio.run(run_experiment(evaluation, tasks, save, step))
            except KeyboardInterrupt:
                say(f"Stopped: with --resume, {experiment.experiment} goes on.", err=True)
                raise typer.Exit(1) from None
            finally:
                _say_waiting(calls.close())
            results = read_results(store, experiment.experiment)
            if len(results) == len(scored) + len(tasks):
                finish_experiment(writer, experiment.experiment)
        summary = _summary(store, experiment.experiment, against)
    summary["not_scored"] = len(scored) + len(tasks) - len(results)
    (write_json if json else _print_summary)(summary)
    for why, count in not_scored.most_common(_REASONS):
        say(f"Not scored, {count:,} times: {one_line(why, _LONGEST_REASON)}", err=True)
    if summary["not_scored"]:
        say(f"{summary['not_scored']:,} answers are missing: with --resume, they are tried again.", err=True)
    means = {row["key"]: row["mean"] for row in summary["scores"]}
    below = [key for key, least in wanted.items() if means.get(key, -inf) < least]
    for key in below:
        say(f"{key} is {_number(means.get(key))}, below {wanted[key]}.", err=True)
    if below or not_scored:
        raise typer.Exit(1)


@experiments_app.command("list")
@takes_settings("database_url", "timezone")
def list_all(
    settings: ConsumerSettings,
    dataset: Annotated[str | None, typer.Option(help="Only over this dataset.")] = None,
    limit: Limit = 50,
    wide: Wide = False,
    json: JsonLines = False,
) -> None:
    """Experiments, the newest first."""
    from runtap_consumers.evaluate.experiments import list_experiments

    with opened_store(settings) as store:
        found = list_experiments(store, dataset)[: limit or None]
    rows = [_experiment_row(settings, one) for one in found]
    printing.print_list(rows, _EXPERIMENTS, "No experiment: `runtap evaluate` makes one.", json, wide=wide)


@experiments_app.command("show")
@takes_settings("database_url", "timezone")
def show_experiment(
    settings: ConsumerSettings,
    experiment: ExperimentId,
    limit: Limit = 50,
    wide: Wide = False,
    json: JsonObject = False,
) -> None:
    """An experiment: what it scored beside the one before it, and each answer."""
    from runtap_consumers.evaluate.experiments import find_experiment, read_results

    with opened_store(settings) as store:
        about = _experiment_row(settings, find_experiment(store, experiment))
        summary = _summary(store, experiment, None)
        results = [_result(one) for one in read_results(store, experiment)]
    if json:
        write_json({**about, **summary, "results": results})
        return
    _print_summary(summary)
    shown = [{**row, "scores": _score_texts(row["scores"])} for row in results[: limit or None]]
    printing.print_table(printing.open_console(wide), "Answers", _RESULTS, shown)


@experiments_app.command("compare")
@takes_settings("database_url")
def compare_experiments(
    settings: ConsumerSettings,
    first: Annotated[str, typer.Argument(metavar="A", help="What the other one is compared with.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one whose scores are shown.")],
    json: JsonObject = False,
) -> None:
    """What B scored, and how far that is from A, on the inputs that both had."""

    with opened_store(settings) as store:
        summary = _summary(store, second, first)
    (write_json if json else _print_summary)(summary)


def _minimums(given: list[str]) -> dict[str, float]:
    try:
        return {key: float(least) for key, _, least in (one.rpartition("=") for one in given)}
    except ValueError as error:
        raise InputError(f"--min {' --min '.join(given)}: expected a key and a number, as in correct=0.9") from error


def pace_of(rate: str) -> BaseRateLimiter:
    """Lets no more calls begin than a rate says.

    Raises:
        InputError: it is none.
    """
    from langchain_core.rate_limiters import InMemoryRateLimiter

    found = _RATE.fullmatch(rate)
    if found is None or int(found[1]) == 0:
        raise InputError(f"--rate {rate!r}: expected so many calls a time, as in 60/min, 5/s or 1000/h")
    a_second = int(found[1]) / _UNIT_SECONDS[found[2]]
    pace = InMemoryRateLimiter(requests_per_second=a_second, check_every_n_seconds=min(0.1, 0.1 / a_second))
    # The first need not wait.
    pace.available_tokens = 1.0
    return pace


def _commit() -> str | None:
    """The commit of the code in the working folder; `None` where there is none, or no git."""
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return said.stdout.strip() if said.returncode == 0 else None


@contextmanager
def _progress(title: str, done: int, left: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    for name in ("runtap_collector", "aiokafka"):
        # That Kafka is away is said once, at the end.
        logging.getLogger(name).addHandler(logging.NullHandler())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(one_line(title), total=done + left, completed=done)
        yield lambda: progress.advance(task)


def _say_waiting(delivery: Any) -> None:
    if waiting := delivery.waiting + delivery.spooled:
        say(f"Kafka does not answer: {waiting:,} events of these runs are in no figure but these yet.", err=True)


def _summary(store: Store, name: str, against: str | None) -> dict[str, Any]:
    """An experiment beside another, or the one before it over the same dataset."""
    from runtap_consumers.evaluate.experiments import find_experiment, list_experiments, read_results, summarise

    found = find_experiment(store, name)
    others = list_experiments(store, found.dataset)
    before = find_experiment(store, against) if against else next(iter(others[others.index(found) + 1 :]), None)
    return summarise(found, read_results(store, name), before, read_results(store, before.experiment) if before else ())


def _print_summary(summary: Row) -> None:
    console = printing.open_console()
    commit = f", commit {summary['git_commit'][:10]}" if summary["git_commit"] else ""
    models = f", {', '.join(summary['models'])}" if summary["models"] else ""
    name = f"{summary['experiment']}: {summary['target']} over {summary['dataset']}, version {summary['version']}"
    print_line(console, f"{name}{models}{commit}", style="bold")
    beside = f"Scores, beside {summary['against']}" if summary["against"] else "Scores"
    printing.print_table(console, beside, _SCORES, map(_score, summary["scores"]))
    parts = [
        f"{summary['answers']:,} answers, {summary['errors']:,} errors, {summary['good_answers']:,} good",
        f"p50 {duration(summary['latency_p50_seconds'])}" if summary["answers"] else "",
        f"{summary['input_tokens']:,} tokens in, {summary['output_tokens']:,} out",
        f"{money(summary['cost_usd'])}, and {money(summary['evaluator_cost_usd'])} for judging",
    ]
    print_line(console, "\n" + "; ".join(filter(None, parts)))
    print_line(console, f"Cost per good answer: {money(summary['cost_per_good_answer_usd'])}")


def _score(row: Row) -> Row:
    interval = f"{row['low']:+.2f} to {row['high']:+.2f}" if row["low"] is not None else None
    shown = {name: _number(row[name]) for name in ("mean", "least_seen")}
    change = f"{row['difference']:+.2f}" if row["difference"] is not None else None
    texts = {"difference": change, "interval": interval, "verdict": row["verdict"]}
    return {"score": row["key"], "answers": row["answers"], **shown, **texts}


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def _score_texts(scores: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in scores.items())


def _experiment_row(settings: ConsumerSettings, experiment: Experiment) -> dict[str, Any]:
    row, zone = experiment._asdict(), settings.zone()
    at = {f"{name}_at": format_instant(row.pop(f"{name}_at_ns"), zone) for name in ("started", "finished")}
    return {**row, "evaluators": orjson.loads(experiment.evaluators), **at}


def _result(result: ExampleResult) -> dict[str, Any]:
    row = result._asdict()
    costs = {f"{name}_usd": dollars(row.pop(f"{name}_picodollars")) for name in ("cost", "evaluator_cost")}
    read = {name: orjson.loads(row[name]) for name in ("scores", "models")}
    return {**row, **read, "latency_seconds": seconds(row.pop("latency_ns")), **costs}
