"""The demo notices every figure on which the report and the model server differ."""

from __future__ import annotations

from typing import Any

import pytest

from runtap_demo.comparison import FIGURES, Comparison, reported_figures, served_figures

TOTALS = {
    "by_model": {
        "m-1": {
            "calls": 2,
            "unmetered_calls": 1,
            "input_tokens": 10,
            "cached_input_tokens": 4,
            "output_tokens": 7,
            "reasoning_tokens": 0,
        }
    }
}
REPORT = {
    "cost": {
        "by_model": [
            {
                "model": "m-1",
                "input_tokens": 10,
                "cache_read_tokens": 4,
                "output_tokens": 7,
                "reasoning_tokens": None,
            },
            {
                "model": "asked-for",
                "input_tokens": 0,
                "cache_read_tokens": 0,
                "output_tokens": 0,
                "reasoning_tokens": 0,
            },
        ]
    }
}
RUNS: list[dict[str, Any]] = [
    {"run_type": "llm", "status": "ok", "model": "m-1", "input_tokens": 10},
    {"run_type": "llm", "status": "ok", "model": "m-1", "input_tokens": None},
    {"run_type": "llm", "status": "error", "model": "asked-for", "input_tokens": None},
    {"run_type": "chain", "status": "ok", "model": None, "input_tokens": None},
]


def test_equal_figures_have_no_difference() -> None:
    comparison = Comparison(reported_figures(REPORT, RUNS), served_figures(TOTALS))
    assert comparison.differences == []
    assert comparison.reported == {
        ("m-1", "answers"): 2,
        ("m-1", "unmetered"): 1,
        ("m-1", "input_tokens"): 10,
        ("m-1", "cached_tokens"): 4,
        ("m-1", "output_tokens"): 7,
    }


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_that_differs_by_one_is_named(figure: str) -> None:
    served = served_figures(TOTALS)
    served["m-1", figure] += 1
    assert Comparison(reported_figures(REPORT, RUNS), served).differences == [("m-1", figure)]


def test_a_model_that_only_one_side_knows_differs() -> None:
    comparison = Comparison({}, {("m-2", "answers"): 1})
    assert comparison.differences == [("m-2", "answers")]
