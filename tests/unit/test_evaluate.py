"""Evaluators by their signatures, what they return, datasets of lines, and whether two prompts differ."""

from __future__ import annotations

import asyncio
import math
import random
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from langchain_core.language_models import FakeListChatModel
from langsmith.evaluation import EvaluationResult, EvaluationResults, RunEvaluator
from langsmith.schemas import Example as LangSmithExample
from langsmith.schemas import Run

from runtap_consumers.errors import InputError
from runtap_consumers.evaluate import evaluators
from runtap_consumers.evaluate.datasets import Example, make_example, read_examples
from runtap_consumers.evaluate.intervals import paired_difference, student_quantile
from runtap_consumers.evaluate.scoring import load_evaluator, make_evaluator
from runtap_consumers.evaluate.targets import TappedCall, load_target

EXAMPLE = make_example({"question": "Where?"}, {"answer": "Here."}, {"session_id": "s1"})


def a_call(outputs: Any, error: str | None = None, cost_picodollars: int | None = 2 * 10**9) -> TappedCall:
    """A call of half a second for 0.2 cents."""
    facts = (error and "other", error, 1_767_225_600 * 10**9, 500_000_000, (), 3, 4, cost_picodollars)
    return TappedCall(str(uuid.UUID(int=1)), "answer", outputs, error, *facts)


def scores(function: Any, call: TappedCall | None = None, example: Example = EXAMPLE) -> dict[str, float]:
    judge = make_evaluator("named", function).runnable
    return asyncio.run(judge.ainvoke((call or a_call({"answer": "Here."}), example)))


def of_langsmith(run: Any, example: Any) -> dict[str, Any]:
    return {"key": "length", "score": len(run.outputs["answer"]) + len(example.outputs["answer"])}


def of_openevals(*, inputs: Any, outputs: Any, reference_outputs: Any, **kwargs: Any) -> dict[str, Any]:
    assert not kwargs
    return {"key": "same", "score": outputs == reference_outputs and "question" in inputs, "comment": None}


async def is_async(outputs: dict[str, Any]) -> float:
    await asyncio.sleep(0)
    return len(outputs) / 4


def of_other_names(root_run: Run, one: LangSmithExample) -> bool:
    assert (root_run.latency, root_run.total_tokens, root_run.total_cost) == (0.5, 7, Decimal("0.002"))
    return root_run.id.int == 1 and one.metadata == {"session_id": "s1"} and root_run.inputs == one.inputs


def of_several(run: Any) -> list[dict[str, Any]]:
    return [{"key": "a", "score": True}, {"key": "b", "score": 2}]


class Judge(RunEvaluator):
    def evaluate_run(self, run: Any, example: Any = None, evaluator_run_id: Any = None) -> EvaluationResult:
        return EvaluationResult(key="c", score=0.5)


class AsyncJudge(Judge):
    async def aevaluate_run(self, run: Any, example: Any = None, evaluator_run_id: Any = None) -> EvaluationResults:
        return {"results": [EvaluationResult(key="d", score=0.5)]}


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (of_langsmith, {"length": 10.0}),
        (of_openevals, {"same": 1.0}),
        (is_async, {"is_async": 0.25}),
        (of_other_names, {"of_other_names": 1.0}),
        (of_several, {"a": 1.0, "b": 2.0}),
        (Judge(), {"c": 0.5}),
        (AsyncJudge(), {"d": 0.5}),
    ],
)
def test_evaluators_get_what_their_parameters_name(function: Any, wanted: dict[str, float]) -> None:
    assert scores(function) == wanted


def test_what_is_no_object_is_the_output_of_one() -> None:
    assert scores(lambda outputs: {"key": "said", "score": outputs == {"output": "x"}}, a_call("x")) == {"said": 1}


@pytest.mark.parametrize("function", [lambda: 1, lambda answer, inputs, third: 1, 7])
def test_an_evaluator_that_wants_what_there_is_not_is_refused_before_anything_runs(function: Any) -> None:
    with pytest.raises(InputError, match="named is no evaluator"):
        make_evaluator("named", function)


@pytest.mark.parametrize(
    "result", [None, "good", {"key": "a", "value": "good"}, {"key": "a", "score": "1"}, math.nan, object()]
)
def test_what_is_no_score_is_none(result: Any) -> None:
    with pytest.raises(ValueError, match=r"[Ee]xpected a"):
        scores(lambda outputs: result)


def test_what_is_named_is_loaded_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_chains.py").write_text("class A:\n    def b(inputs):\n        return inputs\nword = 'x'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_target("some_chains:A.b").invoke({"x": 1}) == {"x": 1}
    for wrong in ("some_chains", "some_chains:c", "no_such_module:a", "some_chains:word"):
        with pytest.raises(InputError, match=wrong):
            load_target(wrong)
    assert load_evaluator("exact_match").name == "exact_match"


@pytest.mark.parametrize(
    ("function", "outputs", "wanted"),
    [
        (evaluators.exact_match, {"answer": " Here. "}, 1),
        (evaluators.exact_match, {"answer": "here."}, 0),
        (evaluators.exact_match, {}, 0),
        (evaluators.contains, {"answer": "It is here. Look."}, 1),
        (evaluators.token_f1, {"answer": "here it is"}, 0.5),
        (evaluators.token_f1, {"other": "here"}, 0),
        (evaluators.json_valid, {"answer": '{"a": null}'}, 1),
        (evaluators.json_valid, {"answer": "null"}, 1),
        (evaluators.json_valid, {"answer": "a: null"}, 0),
        (evaluators.json_valid, {"answer": ["a", 1]}, 1),
        (evaluators.regex(r"^\w+\.$"), {"answer": "Here."}, 1),
        (evaluators.regex(".*"), {}, 0),
        (evaluators.json_schema({"required": ["a"]}), {"answer": '{"a": 1}'}, 1),
        (evaluators.json_schema({"required": ["a"]}), {"answer": '{"b": 1}'}, 0),
        (evaluators.length_within(1, 5), {"answer": "Here."}, 1),
        (evaluators.length_within(0, 4), {"answer": "Here."}, 0),
        (evaluators.latency_below(0.5), {"answer": ""}, 0),
        (evaluators.latency_below(0.6), {"answer": ""}, 1),
        (evaluators.cost_below("0.002"), {"answer": ""}, 0),
        (evaluators.cost_below("0.0021"), {"answer": ""}, 1),
    ],
)
def test_shipped_evaluators(function: Any, outputs: dict[str, Any], wanted: float) -> None:
    assert list(scores(function, a_call(outputs)).values()) == [wanted]


def test_nothing_but_an_answer_is_good_or_quick_or_cheap() -> None:
    failed = a_call({}, error="ValueError: x")
    for function in (evaluators.latency_below(9), evaluators.cost_below("9"), evaluators.length_within(0, 9)):
        assert list(scores(function, failed).values()) == [0]
    unpriced = a_call({"answer": "x"}, cost_picodollars=None)
    assert scores(evaluators.cost_below("9"), unpriced) == {"cost_below": 0}


def test_a_model_judges_and_what_it_says_must_be_a_score() -> None:
    model = FakeListChatModel(responses=['Well: {"score": 0.75, "comment": "almost"}', "I like it", '{"score": 7}'])
    judged = evaluators.llm_judge(model, "It is short.", key="short")
    assert scores(judged) == {"short": 0.75}
    for _ in range(2):
        with pytest.raises(ValueError, match="no score from 0 to 1"):
            scores(judged)
    assert scores(judged, a_call({}, error="x")) == {"short": 0}


def test_examples_are_lines_as_langsmith_writes_them_and_the_number_of_a_wrong_one_is_told() -> None:
    good = b'{"inputs": {"b": 1, "a": [2]}, "outputs": {"answer": "x"}, "metadata": {"session_id": "s"}, "id": "7"}'
    found = read_examples([good, b"\n", b'{"inputs": {"a": [2], "b": 1}}'], "f")
    assert [example.id for example in found] == [make_example({"a": [2], "b": 1}, None, {}).id] * 2
    assert (found[0].session_id, found[1].outputs, found[1].metadata) == ("s", None, {})
    for wrong in (b"{", b"[]", b'{"inputs": "x"}', b'{"inputs": {}, "outputs": 3}', b'{"inputs": {}, "metadata": [1]}'):
        with pytest.raises(InputError, match="f, line 2"):
            read_examples([good, wrong], "f")
    assert make_example("hi", ["x"], {})[1:3] == ({"input": "hi"}, {"output": ["x"]})


@pytest.mark.parametrize(
    ("probability", "freedom", "wanted"),
    [(0.975, 5, 2.5706), (0.975, 30, 2.0423), (0.8, 5, 0.9195), (0.98, 9, 2.3984), (0.998, 7, 4.2067)],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, wanted: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(wanted, rel=0.005)


def told_apart(
    dice: random.Random, sessions: int, shares: tuple[float, float], length: int = 6, kind: str = "binary"
) -> bool:
    """Whether two prompts, right in these shares of answers, are told apart; questions of a session are alike."""
    pairs = []
    for session in range(sessions):
        # How hard a session is counts for both prompts; how one prompt takes to it, for all of its questions.
        mood, hard = dice.gauss(0, 0.1), dice.gauss(0, 0.2)
        for _ in range(dice.randint(1, length)):
            means = [
                min(1.0, max(0.0, share + hard + sign * mood)) for share, sign in zip(shares, (1, -1), strict=True)
            ]
            if kind == "binary":
                before, after = (float(dice.random() < mean) for mean in means)
            else:
                before, after = (dice.gauss(mean, 0.3) for mean in means)
            pairs.append((str(session), after - before))
    return paired_difference(pairs).verdict in ("higher", "lower")


@pytest.mark.parametrize("kind", ["binary", "number"])
@pytest.mark.parametrize(("sessions", "length"), [(6, 8), (15, 6), (40, 1), (40, 12)])
def test_prompts_that_differ_by_nothing_are_told_apart_in_fewer_than_1_of_20_tries(
    sessions: int, length: int, kind: str
) -> None:
    dice = random.Random(f"{sessions} {length} {kind}")
    tries = max(400, 12_000 // sessions)
    assert sum(told_apart(dice, sessions, (0.7, 0.7), length, kind) for _ in range(tries)) < tries / 20


def test_a_real_difference_is_seen_and_one_of_the_least_size_in_most_tries() -> None:
    dice = random.Random(7)
    assert sum(told_apart(dice, 40, (0.4, 0.8)) for _ in range(100)) >= 99
    seen = 0
    for _ in range(500):
        noise = [dice.gauss(0, 1) for _ in range(30)]
        least = paired_difference([(str(number), each) for number, each in enumerate(noise)]).least_seen
        assert least is not None
        shifted = [(str(number), dice.gauss(0, 1) + least) for number in range(30)]
        seen += paired_difference(shifted).verdict == "higher"
    assert 0.75 < seen / 500 < 0.87


def test_pairs_of_a_session_count_as_one_witness_and_few_of_them_as_none() -> None:
    alone = [(str(number), float(number % 3 - 0.5)) for number in range(30)]
    repeated = [(cluster, each) for cluster, each in alone for _ in range(9)]
    assert paired_difference(repeated)[1:4] == pytest.approx(paired_difference(alone)[1:4])
    assert paired_difference([(str(number), 1.0) for number in range(5)])[:2] == (1.0, None)
    assert paired_difference([(str(number), 1.0) for number in range(6)]).verdict == "higher"
    assert paired_difference([]).difference is None
    single, three = (paired_difference(alone, comparisons) for comparisons in (1, 3))
    assert single.low is not None
    assert three.low is not None
    assert three.low < single.low


def test_an_example_is_told_by_its_inputs_alone() -> None:
    same = [make_example(orjson.loads(text), None, {}).id for text in ('{"a":1,"b":2}', '{"b":2,"a":1}', '{"a":1}')]
    assert same[0] == same[1] != same[2]
