"""Evaluators that are shipped: by name alone in `--evaluators`, or made to measure in a module of one's own.

Those that need nothing said (`exact_match`, `contains`, `token_f1`, `json_valid`) are evaluators as they stand, the
others make one: `short = length_within(10, 200)`. An answer that failed scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from statistics import fmean
from typing import Any

import orjson
from langchain_core.language_models import BaseLanguageModel
from langsmith.schemas import Run

from runtap_consumers.errors import InputError

Scored = dict[str, str | float]
_Outputs = Mapping[str, Any]
_WORD = re.compile(r"\w+")
_JUDGE = """You judge an answer. Criterion: {criterion}

Input: {inputs}
Answer: {answer}
Reference answer: {reference}

Reply with one JSON object and nothing else: {{"score": a number from 0 (fails) to 1 (fulfils), "comment": why}}"""
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


def exact_match(outputs: _Outputs, reference_outputs: _Outputs) -> bool:
    """Whether each field of the reference is in the answer, to the letter, but for space around it."""
    return bool(reference_outputs) and all(
        said.strip() == wanted.strip() for said, wanted in _pairs(outputs, reference_outputs)
    )


def contains(outputs: _Outputs, reference_outputs: _Outputs) -> bool:
    """Whether each field of the reference is part of the answer's, whatever the case."""
    return bool(reference_outputs) and all(
        wanted.strip().casefold() in said.casefold() for said, wanted in _pairs(outputs, reference_outputs)
    )


def token_f1(outputs: _Outputs, reference_outputs: _Outputs) -> float:
    """How far the words are those of the reference, from 0 to 1 (SQuAD's F1, without its list of articles)."""
    return fmean(_f1(said, wanted) for said, wanted in _pairs(outputs, reference_outputs)) if reference_outputs else 0.0


def json_valid(outputs: _Outputs) -> bool:
    """Whether the answer is JSON."""
    return _read_json(outputs) is not None


def regex(pattern: str) -> Callable[[_Outputs], Scored]:
    """Whether a pattern is found in the answer."""
    compiled = re.compile(pattern)
    return lambda outputs: {"key": "regex", "score": bool(outputs) and compiled.search(text_of(outputs)) is not None}


def json_schema(schema: Mapping[str, Any]) -> Callable[[_Outputs], Scored]:
    """Whether the answer is JSON that fits a schema.

    Raises:
        InputError: the extra `evaluate` is not installed, or it is no schema.
    """
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise InputError("json_schema needs the extra: pip install 'runtap[evaluate]'") from error
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"json_schema has no schema: {error.message}") from error
    validator = kind(schema)

    def fits(outputs: _Outputs) -> Scored:
        value = _read_json(outputs)
        return {"key": "json_schema", "score": value is not None and validator.is_valid(value[0])}

    return fits


def length_within(least: int, most: int) -> Callable[[_Outputs], Scored]:
    """Whether the answer has so many characters."""
    return lambda outputs: {"key": "length_within", "score": bool(outputs) and least <= len(text_of(outputs)) <= most}


def latency_below(limit_seconds: float) -> Callable[[Run], Scored]:
    """Whether the answer took less than that."""
    return lambda run: {"key": "latency_below", "score": run.error is None and (run.latency or 0) < limit_seconds}


def cost_below(limit_usd: str) -> Callable[[Run], Scored]:
    """Whether the answer cost less than that, a decimal as text; one whose price is not known did not."""
    limit = Decimal(limit_usd)

    def is_below(run: Run) -> Scored:
        return {
            "key": "cost_below",
            "score": run.error is None and run.total_cost is not None and run.total_cost < limit,
        }

    return is_below


def llm_judge(
    model: BaseLanguageModel[Any], criterion: str = "The answer is correct.", key: str = "judge", prompt: str = _JUDGE
) -> Callable[..., Any]:
    """What a model says of the answer, from 0 to 1. What it costs is counted apart.

    Args:
        model: any of LangChain's.
        criterion: a sentence that is true of a good answer.
        key: of the score.
        prompt: has places for `criterion`, `inputs`, `answer` and `reference`.
    """

    async def judge(run: Run, inputs: _Outputs, outputs: _Outputs, reference_outputs: _Outputs) -> Scored:
        if run.error is not None:
            return {"key": key, "score": 0.0}
        values = {"inputs": text_of(inputs), "answer": text_of(outputs), "reference": text_of(reference_outputs)}
        said = text_of({"said": await model.ainvoke(prompt.format(criterion=criterion, **values))})
        found = _OBJECT.search(said)
        score = orjson.loads(found[0]).get("score") if found else None
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ValueError(f"the judge gave no score from 0 to 1: {said[:200]}")
        return {"key": key, "score": score}

    return judge


def text_of(value: Any) -> str:
    """The text of an answer: of a message its content, of an object with one field that field, else JSON."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    value = getattr(value, "content", value)
    return (
        value if isinstance(value, str) else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    )


def _pairs(outputs: _Outputs, reference: _Outputs) -> list[tuple[str, str]]:
    return [(text_of(outputs[name]) if name in outputs else "", text_of(wanted)) for name, wanted in reference.items()]


def _f1(said: str, wanted: str) -> float:
    ours, theirs = (Counter(_WORD.findall(text.casefold())) for text in (said, wanted))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _read_json(outputs: _Outputs) -> tuple[Any] | None:
    """What the text of an answer says, as JSON; `None`: it is none."""
    try:
        return (orjson.loads(text_of(outputs)),) if outputs else None
    except orjson.JSONDecodeError:
        return None
