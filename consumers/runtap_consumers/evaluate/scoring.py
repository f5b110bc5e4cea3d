"""Evaluators, in the signatures of LangSmith and openevals, and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

from runtap_consumers.errors import InputError
from runtap_consumers.evaluate.datasets import Example
from runtap_consumers.evaluate.targets import TappedCall, as_runnable, load
from runtap_consumers.units import PICODOLLARS

_SHIPPED = "runtap_consumers.evaluate.evaluators"
_LONGEST_KEY = 128


@dataclass(frozen=True)
class TargetRun:
    """What an evaluator gets as `run`: of LangSmith's Run what there is. `outputs` is an object, empty on an error."""

    id: str
    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    error: str | None
    start_time: datetime
    end_time: datetime
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    total_cost: Decimal | None
    latency_seconds: float
    metadata: Mapping[str, Any]
    run_type: str = "chain"

    @property
    def run_id(self) -> str:
        """Its id in figures, for `runtap trace`."""
        return self.id

    @property
    def trace_id(self) -> str:
        """It is the root of its trace."""
        return self.id


def run_of(call: TappedCall, name: str, example: Example) -> TargetRun:
    """A call as evaluators see it."""
    output = {} if call.error is not None else call.output
    started = datetime.fromtimestamp(call.started_at_ns / 1e9, UTC)
    cost = call.cost_picodollars
    return TargetRun(
        id=call.run_id,
        name=name,
        inputs=example.inputs,
        outputs=output if isinstance(output, dict) else {"output": output},
        error=call.error,
        start_time=started,
        end_time=started + timedelta(microseconds=call.latency_ns // 1_000),
        prompt_tokens=call.input_tokens,
        completion_tokens=call.output_tokens,
        total_tokens=call.input_tokens + call.output_tokens,
        total_cost=None if cost is None else Decimal(cost) / PICODOLLARS,
        latency_seconds=call.latency_ns / 1e9,
        metadata=example.metadata,
    )


class Evaluator:
    """One evaluator: a Runnable of a run and its example, which returns scores by key."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """Raises:
        InputError: it wants something that there is not.
        """
        self.name = name
        self._arguments = _arguments_for(name, function)
        self._function = function
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        # One that is not async gets a thread: it may wait for a model.
        self.runnable = as_runnable(self._judge_async if is_async else self._judge)

    def _judge(self, judged: tuple[TargetRun, Example]) -> dict[str, float]:
        positional, named = self._arguments(*judged)
        return scores_of(self._function(*positional, **named), self.name)

    async def _judge_async(self, judged: tuple[TargetRun, Example]) -> dict[str, float]:
        positional, named = self._arguments(*judged)
        return scores_of(await self._function(*positional, **named), self.name)


def load_evaluator(path: str) -> Evaluator:
    """The evaluator of `module:name`, or of those that are shipped, of `name`.

    Raises:
        InputError: there is none, or it wants something that there is not.
    """
    found = load(path if ":" in path else f"{_SHIPPED}:{path}")
    # LangSmith's RunEvaluator.
    function = getattr(found, "evaluate_run", found)
    if not callable(function):
        raise InputError(f"{path!r} is {type(found).__name__}: expected a function that returns scores")
    return Evaluator(path.rpartition(":")[2], function)


def _arguments_for(
    name: str, function: Callable[..., Any]
) -> Callable[[TargetRun, Example], tuple[tuple[Any, ...], dict[str, Any]]]:
    """What a function is to be called with, by the names of its parameters."""
    parameters = inspect.signature(function).parameters.values()
    taken = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    wanted = [each for each in ("run", "example", "inputs", "outputs", "reference_outputs") if each in taken]
    takes_all = not taken and any(each.kind is each.VAR_KEYWORD for each in parameters)
    required = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    unknown = [each for each in required if each not in wanted]
    # Two of other names are LangSmith's oldest signature.
    is_positional = len(unknown) == len(required) == 2
    if unknown and not is_positional:
        raise InputError(
            f"evaluator {name} wants {', '.join(unknown)}: expected any of run, example, inputs, outputs, "
            "reference_outputs"
        )

    def arguments(run: TargetRun, example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if is_positional:
            return (run, example), {}
        values = {"run": run, "example": example, "inputs": example.inputs, "outputs": run.outputs}
        values["reference_outputs"] = example.outputs or {}
        return (), values if takes_all else {each: values[each] for each in wanted}

    return arguments


def scores_of(result: Any, name: str) -> dict[str, float]:
    """Scores by key, of a number, a bool, `{"key", "score"}`, an object with these, or several of them.

    Raises:
        TypeError: it is none of these.
        ValueError: a score is no number that can be averaged.
    """
    if isinstance(result, list | tuple):
        return {key: score for each in result for key, score in scores_of(each, name).items()}
    if isinstance(result, Mapping) and "results" in result:
        return scores_of(list(result["results"]), name)
    if isinstance(result, Mapping):
        name, result = str(result.get("key") or name), result.get("score")
    elif hasattr(result, "key") and hasattr(result, "score"):
        name, result = str(result.key), result.score
    # numpy's numbers.
    result = result.item() if hasattr(result, "item") else result
    if not isinstance(result, int | float):
        raise TypeError(f"{name} returned {type(result).__name__}: expected a number, a bool or {{'key', 'score'}}")
    if not isfinite(result):
        raise ValueError(f"{name} returned {result}: expected a number that can be averaged")
    return {name[:_LONGEST_KEY]: float(result)}
