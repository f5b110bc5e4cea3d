"""An experiment's way: `run_experiment` answers and scores what is left of it, and keeps each answer at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import Runnable

from runtap_consumers.evaluate.datasets import Example
from runtap_consumers.evaluate.experiments import ExampleResult
from runtap_consumers.evaluate.scoring import Evaluator
from runtap_consumers.evaluate.targets import INFRASTRUCTURE, TRANSIENT, TappedCall, TappedCalls

# Between two tries of a call that infrastructure failed; half as long to one and a half times as long.
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
Task = tuple[Example, int]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how. `pace`: of calls of the target."""

    experiment: str
    name: str
    target: Runnable[Any, Any]
    evaluators: list[Evaluator]
    calls: TappedCalls
    concurrency: int
    pace: BaseRateLimiter | None
    pauses: tuple[float, ...] = _PAUSES


async def run_experiment(
    evaluation: Evaluation, tasks: Iterable[Task], save: Callable[[ExampleResult], None], step: Callable[[], None]
) -> Counter[str]:
    """Answers and scores.

    Args:
        evaluation: what is evaluated.
        tasks: examples and repetitions that are left.
        save: keeps an answer with its scores.
        step: called after each task.

    Returns:
        What was not scored, by reason: an answer that infrastructure failed, which is not kept; or a score that an
        evaluator failed to give.
    """
    left, not_scored = iter(tasks), Counter[str]()
    # Functions that are not async wait in threads, each of which would otherwise wait for another's.
    threads = ThreadPoolExecutor(evaluation.concurrency, thread_name_prefix="runtap-evaluate")
    asyncio.get_running_loop().set_default_executor(threads)

    async def work() -> None:
        for example, repetition in left:
            result = await _answer(evaluation, example, repetition, not_scored)
            if result is not None:
                save(result)
            step()

    await asyncio.gather(*(work() for _ in range(evaluation.concurrency)))
    return not_scored


async def _answer(
    evaluation: Evaluation, example: Example, repetition: int, not_scored: Counter[str]
) -> ExampleResult | None:
    metadata = {"experiment": evaluation.experiment, "example_id": example.id}
    target = evaluation.target, example.inputs, evaluation.name, metadata
    call = await _call(evaluation, *target, evaluation.pace)
    if call.category in INFRASTRUCTURE:
        not_scored[f"{evaluation.name}: {call.error}"] += 1
        return None
    scores: dict[str, float] = {}
    evaluator_costs: list[int | None] = []
    for evaluator in evaluation.evaluators:
        judged = await _call(evaluation, evaluator.runnable, (call, example), evaluator.name, metadata)
        evaluator_costs.append(judged.cost_picodollars)
        if judged.error is not None:
            not_scored[f"{evaluator.name}: {judged.error}"] += 1
            if judged.category in INFRASTRUCTURE:
                return None
        else:
            scores |= judged.output
    return ExampleResult(
        example.id,
        repetition,
        example.session_id,
        call.run_id,
        orjson.dumps(scores).decode(),
        call.kept_error,
        orjson.dumps(call.models).decode(),
        call.latency_ns,
        call.input_tokens,
        call.output_tokens,
        call.cost_picodollars,
        None if None in evaluator_costs else sum(cost or 0 for cost in evaluator_costs),
    )


async def _call(
    evaluation: Evaluation,
    runnable: Runnable[Any, Any],
    value: Any,
    name: str,
    metadata: dict[str, str],
    pace: BaseRateLimiter | None = None,
) -> TappedCall:
    """Calls until infrastructure lets it through, or has failed too often; of all tries only the last is measured."""
    for pause in (*evaluation.pauses, None):
        if pace is not None:
            await pace.aacquire()
        call = await evaluation.calls.call(runnable, value, name, metadata)
        if call.category not in TRANSIENT or pause is None:
            break
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
    return call
