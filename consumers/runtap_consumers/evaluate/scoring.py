"""Evaluators as LangSmith has them, which openevals' are, too: what they are given, and the scores that they return."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple
from uuid import UUID

from langchain_core.runnables import Runnable
from langsmith.evaluation import EvaluationResult, EvaluationResults, RunEvaluator, run_evaluator
from langsmith.evaluation.evaluator import DynamicRunEvaluator
from langsmith.schemas import Example as LangSmithExample
from langsmith.schemas import Run

from runtap_consumers.errors import InputError
from runtap_consumers.evaluate.datasets import Example
from runtap_consumers.evaluate.targets import TappedCall, as_runnable, load
from runtap_consumers.units import PICODOLLARS

_SHIPPED = "runtap_consumers.evaluate.evaluators"
_LONGEST_KEY = 128


class Evaluator(NamedTuple):
    """One evaluator: a Runnable of a call and its example, which returns scores by key."""

    name: str
    runnable: Runnable[tuple[TappedCall, Example], dict[str, float]]


def load_evaluator(path: str) -> Evaluator:
    """The evaluator of `module:name`, or of those that are shipped, of `name`.

    Raises:
        InputError: there is none, or it wants something that there is not.
    """
    return make_evaluator(path.rpartition(":")[2], load(path if ":" in path else f"{_SHIPPED}:{path}"))


def make_evaluator(name: str, found: Any) -> Evaluator:
    """An evaluator of a function or of a RunEvaluator.

    Raises:
        InputError: it is neither, or wants something that there is not.
    """
    try:
        judge: RunEvaluator = found if isinstance(found, RunEvaluator) else run_evaluator(found)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no evaluator: {error}") from error
    if isinstance(judge, DynamicRunEvaluator):
        is_async = judge.is_async
    else:
        is_async = type(judge).aevaluate_run is not RunEvaluator.aevaluate_run

    def evaluate(judged: tuple[TappedCall, Example]) -> dict[str, float]:
        return _scores(judge.evaluate_run(*_as_langsmith(*judged)), name)

    async def evaluate_async(judged: tuple[TappedCall, Example]) -> dict[str, float]:
        return _scores(await judge.aevaluate_run(*_as_langsmith(*judged)), name)

    # One that is not async gets a thread: it may wait for a model.
    return Evaluator(name, as_runnable(evaluate_async if is_async else evaluate))


def _as_langsmith(call: TappedCall, example: Example) -> tuple[Run, LangSmithExample]:
    """A call and its example as evaluators see them. Of an answer that failed, `outputs` are empty."""
    output = {} if call.error is not None else call.output
    started, cost = datetime.fromtimestamp(call.started_at_ns / 1e9, UTC), call.cost_picodollars
    run = Run(
        id=UUID(call.run_id),
        name=call.name,
        run_type="chain",
        inputs=example.inputs,
        outputs=output if isinstance(output, dict) else {"output": output},
        error=call.error,
        start_time=started,
        end_time=started + timedelta(microseconds=call.latency_ns // 1_000),
        prompt_tokens=call.input_tokens,
        completion_tokens=call.output_tokens,
        total_tokens=call.input_tokens + call.output_tokens,
        total_cost=None if cost is None else Decimal(cost) / PICODOLLARS,
        extra={"metadata": example.metadata},
    )
    facts = {"inputs": example.inputs, "outputs": example.outputs, "metadata": example.metadata}
    return run, LangSmithExample.model_validate({"id": example.id, **facts})


def _scores(found: EvaluationResult | EvaluationResults, name: str) -> dict[str, float]:
    """Scores by key.

    Raises:
        ValueError: one is no number that can be averaged.
    """
    scores = {}
    for each in [found] if isinstance(found, EvaluationResult) else found["results"]:
        if each.score is None or not isfinite(each.score):
            raise ValueError(f"{name} gave {each.score or each.value!r}: expected a number or a bool, to be averaged")
        scores[each.key[:_LONGEST_KEY]] = float(each.score)
    return scores
