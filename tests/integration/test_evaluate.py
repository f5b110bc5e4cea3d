"""Datasets, experiments and their commands: real runs, real models over HTTP, kills in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from command_line import call_command
from runtap_consumers.cli.evaluate import pace_of
from runtap_consumers.errors import InputError
from runtap_consumers.evaluate.datasets import (
    Example,
    list_versions,
    make_example,
    read_version,
    remove_user,
    save_version,
)
from runtap_consumers.evaluate.experiments import (
    ExampleResult,
    begin_experiment,
    finish_experiment,
    list_experiments,
    read_results,
    resume_experiment,
    save_result,
    summarise,
)
from runtap_consumers.evaluate.runner import Evaluation, run_experiment
from runtap_consumers.evaluate.scoring import make_evaluator
from runtap_consumers.evaluate.targets import TappedCalls, as_runnable
from runtap_consumers.pricing.source import load_prices
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.writer import Writer
from runtap_demo.kafka.child_processes import end, spawn
from runtap_demo.kafka.ports import free_ports

# As the first description of this product has it, to the letter.
SEED = """
def check_answer_length(run, example):
    prediction = run.outputs.get("answer", "")
    return {"key": "answer_length", "score": 1.0 if 10 <= len(prediction) <= 200 else 0.0}
"""
TARGET = """
async def qa_chain(inputs):
    return {"answer": f"Of {inputs['question']} much can be said."}
"""
Model = Callable[[str], ChatOpenAI]
QUESTIONS = ("What is Kafka?", "What is a trace?", "What is a token?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the module, and a dataset of three questions as JSON lines."""
    (tmp_path / "qa_evaluation.py").write_text(SEED + TARGET)
    lines = [{"inputs": {"question": question}, "outputs": {"answer": question}} for question in QUESTIONS]
    (tmp_path / "qa.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def variables(folder: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RUNTAP_")}
    store = f"sqlite:///{folder / 'runtap.db'}"
    # Nobody listens there: neither a worker nor Kafka need be.
    about = {"RUNTAP_DATABASE_URL": store, "RUNTAP_BOOTSTRAP_SERVERS": "127.0.0.1:1", "RUNTAP_SPOOL_DIR": "off"}
    return {**inherited, **about, "COLUMNS": "250", **more}


def runtap(folder: Path, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """A process for what imports a module of the folder; else a call."""
    if arguments[0] == "evaluate":
        done = subprocess.run(
            [sys.executable, "-m", "runtap_consumers", *arguments],
            env=variables(folder, **more),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    else:
        done = call_command(arguments, variables(folder, **more), folder)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def seed_command(*more: str) -> list[str]:
    what = ("--target", "qa_evaluation:qa_chain", "--evaluators", "qa_evaluation:check_answer_length")
    return ["evaluate", "qa-test-dataset", *what, "--prefix", "qa-evaluation", *more]


def test_the_seed_example_runs_as_it_stands_and_min_decides_the_exit_code(folder: Path) -> None:
    assert "3 examples" in runtap(folder, "dataset", "import", "qa-test-dataset", "qa.jsonl").stdout
    first = runtap(folder, *seed_command("--min", "answer_length=0.9"))
    assert first.stdout.startswith("qa-evaluation-1: qa_evaluation:qa_chain over qa-test-dataset, version 1")
    (row,) = [line.split() for line in first.stdout.splitlines() if line.startswith("answer_length")]
    assert row[1:3] == ["1.00", "3"]
    assert "Kafka does not answer" in first.stderr
    below = runtap(folder, *seed_command("--min", "answer_length=1.01", "--json"), code=1)
    found = json.loads(below.stdout)
    assert (found["experiment"], found["against"], found["answers"]) == ("qa-evaluation-2", "qa-evaluation-1", 3)
    assert (found["scores"][0]["mean"], found["scores"][0]["difference"]) == (1.0, 0.0)
    assert (found["cost_usd"], found["good_answers"], found["not_scored"]) == ("0", 3, 0)
    assert "answer_length is 1.00, below 1.01." in below.stderr
    missing = runtap(folder, *seed_command("--min", "helpful=0"), code=1)
    assert "helpful is –, below 0.0." in missing.stderr
    listed = runtap(folder, "experiments", "list", "--json").stdout.splitlines()
    assert [json.loads(line)["experiment"] for line in listed] == [f"qa-evaluation-{number}" for number in (3, 2, 1)]
    shown = json.loads(runtap(folder, "experiments", "show", "qa-evaluation-2", "--json").stdout)
    assert [result["scores"] for result in shown["results"]] == [{"answer_length": 1.0}] * 3
    assert "answer_length 1.00" in runtap(folder, "experiments", "show", "qa-evaluation-2").stdout
    compared = json.loads(
        runtap(folder, "experiments", "compare", "qa-evaluation-3", "qa-evaluation-1", "--json").stdout
    )
    assert (compared["experiment"], compared["against"]) == ("qa-evaluation-1", "qa-evaluation-3")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rate", "60"), "--rate '60': expected"),
        (("--min", "answer_length"), "--min answer_length: expected"),
        (("--against", "none-1"), "there is no experiment 'none-1'"),
        (("--version", "7"), "has no version 7"),
        (("--target", "qa_evaluation:none"), "cannot load 'qa_evaluation:none'"),
        (("--evaluators", "good"), "cannot load 'runtap_consumers.evaluate.evaluators:good'"),
    ],
)
def test_a_wrong_request_is_one_line_and_begins_no_experiment(more: tuple[str, ...], said: str, folder: Path) -> None:
    runtap(folder, "dataset", "import", "qa-test-dataset", "qa.jsonl")
    refused = runtap(folder, *seed_command(*more), code=2)
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "No experiment" in runtap(folder, "experiments", "list").stdout


def test_what_is_exported_is_what_was_imported(folder: Path) -> None:
    lines = [
        {"inputs": {"b": [1, None], "a": "\u202eé"}, "outputs": {"x": {"y": 1.5}}, "metadata": {"user_id": "u1"}},
        {"inputs": {"a": 1}, "outputs": None, "metadata": {"session_id": "s1"}},
    ]
    twice = {"inputs": {"a": 1}, "outputs": {"late": 1}}
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, twice]))
    said = runtap(folder, "dataset", "import", "d", "in.jsonl").stdout
    assert said == "Dataset d, version 1: 2 examples; 1 with the same inputs as another were left out.\n"
    runtap(folder, "dataset", "export", "d", "out.jsonl")
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()] == lines
    runtap(folder, "dataset", "import", "e", "out.jsonl")
    assert runtap(folder, "dataset", "export", "e", "-").stdout == (folder / "out.jsonl").read_text()
    (folder / "more.jsonl").write_text(json.dumps(twice))
    assert "version 2: 2 examples; 1 with" in runtap(folder, "dataset", "import", "d", "more.jsonl", "--add").stdout
    newest = [json.loads(line) for line in runtap(folder, "dataset", "export", "d").stdout.splitlines()]
    assert [line["outputs"] for line in newest] == [{"late": 1}, {"x": {"y": 1.5}}]
    assert "1 examples of user u1" not in runtap(folder, "dataset", "remove-user", "d", "u2").stdout
    assert runtap(folder, "dataset", "remove-user", "d", "u1").stdout.startswith("2 examples of user u1 removed")
    assert len(runtap(folder, "dataset", "export", "d", "--version", "1").stdout.splitlines()) == 1
    wrong = runtap(folder, "dataset", "import", "d", "no.jsonl", code=2)
    assert "cannot read 'no.jsonl'" in wrong.stderr


def a_result(example_id: str, **changes: Any) -> ExampleResult:
    facts: dict[str, Any] = {"session_id": None, "run_id": "r", "scores": '{"right": 1.0}', "error": None}
    facts |= {"models": '["m"]', "latency_ns": 10**9, "input_tokens": 3, "output_tokens": 4}
    facts |= {"cost_picodollars": 2 * 10**9, "evaluator_cost_picodollars": 10**9, **changes}
    return ExampleResult(example_id=example_id, repetition=facts.pop("repetition", 1), **facts)


def test_versions_and_experiments_are_kept_as_they_were_on_both_stores(store: Store) -> None:
    examples = [make_example({"q": number}, {"a": "\0"}, {"user_id": f"u{number % 2}"}) for number in range(4)]
    assert save_version(store, "d", "file", [*examples, examples[0]]) == (1, 4, 1)
    assert save_version(store, "d", "runs", examples[:1])[0] == 2
    assert save_version(store, "e", "runs", examples[:1])[0] == 1
    assert read_version(store, "d", 1) == (1, examples)
    assert [(row["dataset"], row["version"], row["examples"]) for row in list_versions(store)] == [
        ("d", 2, 1),
        ("e", 1, 1),
    ]
    assert [row["version"] for row in list_versions(store, "d")] == [2, 1]
    assert remove_user(store, "d", "u0") == 3
    assert read_version(store, "d", 1)[1] == examples[1::2]
    assert read_version(store, "e")[1] == examples[:1]
    what = ("p", "d", 1, "m:f", '["m:g"]')
    first, second = (begin_experiment(store, *what, 2, None) for _ in range(2))
    assert (first.experiment, second.experiment) == ("p-1", "p-2")
    with Writer.of(store) as writer:
        for _ in range(2):
            save_result(writer, "p-1", a_result("x"))
        save_result(writer, "p-1", a_result("x", repetition=2, scores='{"right": 0.0}', error="ValueError: x"))
        assert resume_experiment(store, *what) == second
        finish_experiment(writer, "p-2")
    assert resume_experiment(store, *what) is None
    assert [found.experiment for found in list_experiments(store, "d")] == ["p-2", "p-1"]
    results = read_results(store, "p-1")
    assert results == [a_result("x"), a_result("x", repetition=2, scores='{"right": 0.0}', error="ValueError: x")]
    summary = summarise(first, results, None, ())
    assert (summary["cost_usd"], summary["cost_per_good_answer_usd"]) == ("0.004", "0.004")
    assert (summary["evaluator_cost_usd"], summary["errors"], summary["models"]) == ("0.002", 1, ["m"])
    unpriced = summarise(first, [*results, a_result("y", cost_picodollars=None)], None, ())
    assert (unpriced["cost_usd"], unpriced["cost_per_good_answer_usd"]) == (None, None)
    third = begin_experiment(store, *what, 1, "c0ffee")
    with pytest.raises(InputError, match="p-3 was begun with version 1, m:f"):
        resume_experiment(store, "p", "d", 1, "m:other", '["m:g"]')
    assert resume_experiment(store, *what) == third


SLOW = """
import os, pathlib, time

def answer(inputs):
    with open("asked.txt", "a") as asked:
        asked.write(f"{inputs['n']}\\n")
    time.sleep(0.1)
    return {"answer": inputs["n"]}

def right(outputs, reference_outputs):
    return outputs["answer"] == reference_outputs["answer"]
"""


def test_killed_in_the_middle_an_experiment_goes_on_and_scores_every_answer_once(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    lines = [json.dumps({"inputs": {"n": number}, "outputs": {"answer": number}}) for number in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    runtap(tmp_path, "dataset", "import", "d", "d.jsonl")
    command = ["evaluate", "d", "--target", "slow:answer", "--evaluators", "slow:right", "--concurrency", "2"]
    command += ["--repeat", "2", "--resume"]
    environment = variables(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "runtap_consumers", *command],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline, asked = time.monotonic() + 60, tmp_path / "asked.txt"
    try:
        while not asked.exists() or len(asked.read_text().splitlines()) < 30:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait(10)
    with closing(open_store(environment["RUNTAP_DATABASE_URL"])) as store:
        before = {result[:2]: result for result in read_results(store, "answer-1")}
    assert 20 <= len(before) < 80
    summary = json.loads(runtap(tmp_path, *command, "--json").stdout)
    assert (summary["experiment"], summary["answers"], summary["is_finished"]) == ("answer-1", 80, True)
    assert summary["scores"][0]["mean"] == 1.0
    with closing(open_store(environment["RUNTAP_DATABASE_URL"])) as store:
        after = {result[:2]: result for result in read_results(store, "answer-1")}
    # What was scored is as it was; only what was under way at the kill was asked twice.
    assert {key: after[key] for key in before} == before
    times = Counter(asked.read_text().split())
    assert sum(times.values()) - 80 <= 2
    assert min(times.values()) == 2
    again = json.loads(runtap(tmp_path, *command, "--json").stdout)
    assert again["experiment"] == "answer-2"


@pytest.fixture
def model_server(tmp_path: Path) -> Iterator[str]:
    """The address of a model server that refuses some first attempts, and some questions for ever."""
    port = free_ports(1)[0]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "runtap_demo.model_server", "--port", str(port), "--seed", "5"]
    process = spawn(command, log=tmp_path / "model.log")
    deadline = time.monotonic() + 20
    while True:
        try:
            totals_of(address)
            break
        except OSError:
            assert time.monotonic() < deadline, (tmp_path / "model.log").read_text()
            time.sleep(0.05)
    yield address
    end([process], timeout_seconds=5)


def totals_of(address: str) -> Any:
    with urllib.request.urlopen(f"{address}/totals", timeout=5) as response:
        return json.load(response)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TappedCalls]:
    monkeypatch.setenv("RUNTAP_SPOOL_DIR", "off")
    prices = tmp_path / "prices.toml"
    # The model server stands in for OpenAI; an address that nobody knows has no prices.
    prices.write_text('[[seller]]\nhost = "127.0.0.1"\nprovider = "openai"\n')
    settings = ConsumerSettings.load(bootstrap_servers="127.0.0.1:1", prices=str(prices))
    tapped = TappedCalls(settings, load_prices(settings))
    yield tapped
    tapped.close()


@pytest.fixture
async def model(model_server: str) -> AsyncIterator[Model]:
    options: dict[str, Any] = {"base_url": f"{model_server}/v1", "api_key": "none", "max_retries": 0, "timeout": 4}
    async with httpx.AsyncClient(timeout=4) as client:
        yield lambda name: ChatOpenAI(model=name, http_async_client=client, **options)


async def outcome(
    calls: TappedCalls, target: Any, evaluators: list[Any], examples: list[Example], **options: Any
) -> tuple[list[ExampleResult], Counter[str]]:
    judges = [make_evaluator(function.__name__, function) for function in evaluators]
    runnable = target if isinstance(target, Runnable) else as_runnable(target)
    options = {"concurrency": 8, "pace": None, "pauses": (0.05, 0.1, 0.1), **options}
    results: list[ExampleResult] = []
    evaluation = Evaluation("test-1", "test", runnable, judges, calls, **options)
    not_scored = await run_experiment(evaluation, [(example, 1) for example in examples], results.append, lambda: None)
    return results, not_scored


def answered(run: Any) -> dict[str, Any]:
    return {"key": "answered", "score": run.error is None and run.total_tokens > 0 and bool(run.outputs["output"].text)}


async def test_answers_that_a_server_refuses_are_tried_again_and_never_scored(
    model_server: str, model: Model, calls: TappedCalls
) -> None:
    async def judge(outputs: Any) -> float:
        said = await model("gpt-4.1").ainvoke(f"Is this good? {outputs['output'].text[:60]}")
        return float(bool(said.text))

    examples = [make_example({"question": f"question {number}"}, None, {}) for number in range(80)]
    chain = ChatPromptTemplate.from_template("{question}") | model("gpt-4o-mini")
    results, not_scored = await outcome(calls, chain, [answered, judge], examples)
    totals = totals_of(model_server)
    refused = totals["not_answered"]
    assert min(refused["429"], refused["500"]) > 0, refused
    # Some questions are refused however often they come: these have no score, and are no error among the answers.
    assert len(results) + sum(not_scored.values()) == 80
    assert 0 < sum(not_scored.values()) < 10
    assert all(any(map(why.count, ("RateLimit", "Error code: 500", "Timeout"))) for why in not_scored), not_scored
    assert {(result.error, result.scores) for result in results} == {(None, '{"answered":1.0,"judge":1.0}')}
    assert len({result.run_id for result in results}) == len(results)
    # Figures are the server's own count, but for answers whose judge was refused for good.
    mini, judged = (totals["by_model"][name] for name in ("gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14"))
    assert judged["calls"] == len(results)
    assert mini["calls"] == len(results) + sum(count for why, count in not_scored.items() if why.startswith("judge:"))
    # 2 and 8 dollars a million tokens, a quarter of it for what the cache had: OpenAI's prices, in picodollars.
    judging = sum(result.evaluator_cost_picodollars or 0 for result in results)
    cached = judged["cached_input_tokens"]
    assert judging == judged["input_tokens"] * 2_000_000 + judged["output_tokens"] * 8_000_000 - cached * 1_500_000
    if mini["calls"] == len(results):
        assert sum(result.input_tokens for result in results) == mini["input_tokens"]
        assert sum(result.output_tokens for result in results) == mini["output_tokens"]
    assert mini["cached_input_tokens"] == 0
    cost = sum(result.cost_picodollars or 0 for result in results)
    assert cost == sum(result.input_tokens * 150_000 + result.output_tokens * 600_000 for result in results) > 0
    assert {result.models for result in results} == {'["gpt-4o-mini-2024-07-18"]'}


async def test_a_model_without_a_price_makes_the_cost_unknown_and_not_zero(model: Model, calls: TappedCalls) -> None:
    examples = [make_example({"question": f"{number}"}, None, {}) for number in range(3)]
    chain = ChatPromptTemplate.from_template("{question}") | model("house-model-7b")
    results, _ = await outcome(calls, chain, [answered], examples)
    assert results
    assert {result.cost_picodollars for result in results} == {None}


class RateLimitError(Exception):
    """What a provider's client raises."""


async def test_waiting_for_infrastructure_is_outside_of_the_measured_time(calls: TappedCalls) -> None:
    tries: Counter[int] = Counter()

    def target(inputs: dict[str, Any]) -> dict[str, Any]:
        tries[inputs["n"]] += 1
        if tries[inputs["n"]] <= inputs["n"]:
            raise RateLimitError("too many requests")
        return inputs

    def flaky(outputs: dict[str, Any]) -> float:
        if tries[-outputs["n"]] < 1:
            tries[-outputs["n"]] += 1
            raise TimeoutError
        return float(outputs["n"])

    examples = [make_example({"n": number}, None, {}) for number in range(1, 5)]
    results, not_scored = await outcome(calls, target, [flaky], examples, pauses=(0.6, 0.6, 0.6))
    assert {json.loads(result.scores)["flaky"] for result in results} == {1, 2, 3}
    assert max(result.latency_ns for result in results) < 0.3 * 10**9
    assert not_scored == {"test: RateLimitError: too many requests": 1}


async def test_an_error_of_the_target_is_an_answer_and_one_of_an_evaluator_is_no_score(calls: TappedCalls) -> None:
    def target(inputs: dict[str, Any]) -> str:
        if inputs["n"] == 1:
            raise ValueError("no such order")
        return f"order {inputs['n']}"

    def said(outputs: dict[str, Any]) -> bool:
        return "order" in outputs.get("output", "")

    def broken(outputs: dict[str, Any]) -> bool:
        return len(outputs["output"]) > 3

    examples = [make_example({"n": number}, None, {}) for number in (1, 2)]
    results, not_scored = await outcome(calls, target, [said, broken], examples, concurrency=1)
    found = [(result.error, json.loads(result.scores)) for result in results]
    # Its message may quote what people wrote, and stays in the process.
    assert found == [("ValueError", {"said": 0.0}), (None, {"said": 1.0, "broken": 1.0})]
    assert not_scored == {"broken: KeyError: 'output'": 1}


async def test_calls_begin_no_quicker_than_the_rate(calls: TappedCalls) -> None:
    begun: list[float] = []

    async def target(inputs: dict[str, Any]) -> dict[str, Any]:
        begun.append(time.monotonic())
        return inputs

    examples = [make_example({"n": number}, None, {}) for number in range(6)]
    before = time.monotonic()
    await outcome(calls, target, [], examples, pace=pace_of("10/s"))
    assert [at - before >= 0.0999 * number for number, at in enumerate(sorted(begun))] == [True] * 6
