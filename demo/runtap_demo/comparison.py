"""The report's figures beside those that the model server counted itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

FIGURES = ("answers", "unmetered", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


@dataclass(frozen=True)
class Comparison:
    """Figures by model and name, from both sides."""

    reported: Mapping[tuple[str, str], int]
    served: Mapping[tuple[str, str], int]

    @property
    def differences(self) -> list[tuple[str, str]]:
        """Model and name of each figure on which the sides differ."""
        keys = sorted({*self.reported, *self.served})
        return [key for key in keys if self.reported.get(key, 0) != self.served.get(key, 0)]

    def table(self) -> Table:
        """A row a model; a figure that differs shows both values, the report's first."""
        table = Table(
            title="Calls answered and their tokens: the report beside the model server's own count",
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
        )
        table.add_column("Model", no_wrap=True)
        for title in ("calls", "no usage", "in", "cached", "out", "reasoning", "same"):
            table.add_column(title, justify="right", no_wrap=True)
        for model in sorted({model for model, _ in (*self.reported, *self.served)}):
            cells = [self._cell((model, figure)) for figure in FIGURES]
            is_same = all(different != model for different, _ in self.differences)
            table.add_row(model, *cells, "[green]yes[/]" if is_same else "[red]no[/]")
        return table

    def _cell(self, key: tuple[str, str]) -> str:
        reported, served = self.reported.get(key, 0), self.served.get(key, 0)
        return f"{served:,}" if reported == served else f"[red]{reported:,} ≠ {served:,}[/]"


def reported_figures(report: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """The figures of `runtap report --json` and, for what only single runs tell, of `runtap runs --json`."""
    figures: Counter[tuple[str, str]] = Counter()
    for row in report["cost"]["by_model"]:
        model = row["model"] or ""
        figures[model, "input_tokens"] += row["input_tokens"] or 0
        figures[model, "cached_tokens"] += row["cache_read_tokens"] or 0
        figures[model, "output_tokens"] += row["output_tokens"] or 0
        figures[model, "reasoning_tokens"] += row["reasoning_tokens"] or 0
    for run in runs:
        # A call that failed, or that the app broke off, is no answer that the server sent whole.
        if run["run_type"] == "llm" and run["status"] == "ok":
            figures[run["model"], "answers"] += 1
            figures[run["model"], "unmetered"] += run["input_tokens"] is None
    return +figures


def served_figures(totals: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """The figures of the model server's own totals."""
    names = dict(
        zip(
            ("calls", "unmetered_calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
            FIGURES,
            strict=True,
        )
    )
    figures: Counter[tuple[str, str]] = Counter()
    for model, counts in totals["by_model"].items():
        figures.update({(model, names[name]): count for name, count in counts.items()})
    return +figures
