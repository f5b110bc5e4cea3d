"""Writes the dashboard that Grafana shows: `python deploy/grafana/make_dashboard.py`.

Rates are over five minutes: counters move with a worker's commits, a second or so after the calls. It is of the form
that every Grafana reads from files.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

FILE = Path(__file__).with_name("dashboards") / "runtap.json"
OF = 'service=~"$service",environment=~"$environment"'
CALLS = f'{OF},model=~"$model"'
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


class Panel(NamedTuple):
    """A panel: each query with how its lines are called; `is_stacked`: what the lines are parts of is of interest."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    is_stacked: bool = False


def _legend(*labels: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _quantiles(metric: str, of: str, by: str) -> dict[str, str]:
    buckets = f"sum by (le, {by}) (rate({metric}_bucket{{{of}}}[5m]))"
    return {f"{_legend(by)} p{percent}": f"histogram_quantile(0.{percent}, {buckets})" for percent in (50, 95)}


def _rates(metric: str, of: str, *by: str) -> dict[str, str]:
    return {_legend(*by): f"sum by ({', '.join(by)}) (rate({metric}{{{of}}}[5m]))"}


def _failed(kind: str, of: str, *by: str) -> dict[str, str]:
    names, metric = ", ".join(by), f"langchain_{kind}_calls_total"
    failed = f'sum by ({names}) (rate({metric}{{{of},status="error"}}[5m]))'
    return {_legend(*by): f"{failed} / sum by ({names}) (rate({metric}{{{of}}}[5m]))"}


# Of the range that is shown, at its end.
NUMBERS = [
    Panel(
        "Cost",
        "Of calls with a known price, over the range. Prometheus extrapolates: bills are runtap costs.",
        "currencyUSD",
        {"": f"sum(increase(runtap_cost_dollars_total{{{CALLS}}}[$__range]))"},
    ),
    Panel(
        "Calls",
        "Model calls that ended, over the range.",
        "short",
        {"": f"sum(increase(langchain_llm_calls_total{{{CALLS}}}[$__range]))"},
    ),
    Panel(
        "Error rate",
        "Share of the range's model calls that failed.",
        "percentunit",
        {
            "": f'sum(increase(langchain_llm_calls_total{{{CALLS},status="error"}}[$__range]))'
            f" / sum(increase(langchain_llm_calls_total{{{CALLS}}}[$__range]))"
        },
    ),
    Panel(
        "Unpriced calls",
        "Calls with usage and without a known price, over the range: runtap prices unmatched says what to do.",
        "short",
        {"": f"sum(increase(runtap_unpriced_calls_total{{{CALLS}}}[$__range]))"},
    ),
    Panel(
        "Complete to, ago",
        "Before that instant no event is missing that is not counted.",
        "s",
        {"": "time() - runtap_complete_to_timestamp_seconds"},
    ),
    Panel("Lost events", "Of all time: runtap ledger.", "short", {"": 'runtap_ledger_events{state="lost"}'}),
]
GRAPHS = {
    "Calls": [
        Panel("Calls", "Model calls a second.", "reqps", _rates("langchain_llm_calls_total", CALLS, "model"), True),
        Panel(
            "Error rate",
            "Share of model calls that failed.",
            "percentunit",
            _failed("llm", CALLS, "service", "model"),
        ),
        Panel(
            "Cost",
            "Dollars an hour, of calls with a known price.",
            "currencyUSD",
            {"{{model}}": f"sum by (model) (rate(runtap_cost_dollars_total{{{CALLS}}}[5m])) * 3600"},
            True,
        ),
        Panel(
            "Latency",
            "Of model calls, out of a histogram: between bounds it is interpolated.",
            "s",
            _quantiles("langchain_llm_duration_seconds", CALLS, "model"),
        ),
        Panel(
            "Time to first token",
            "Of streamed calls, out of a histogram.",
            "s",
            _quantiles("runtap_time_to_first_token_seconds", CALLS, "model"),
        ),
        Panel(
            "Active calls",
            "Calls that have not ended.",
            "short",
            {"{{model}}": f"sum by (model) (langchain_llm_active_calls{{{CALLS}}})"},
            True,
        ),
        Panel("Tokens", "Tokens a second.", "short", _rates("langchain_token_usage_sum", CALLS, "type"), True),
        Panel(
            "Unpriced and unmetered calls",
            "A second: with usage and without a price; and succeeded without telling usage.",
            "reqps",
            {
                f"{{{{model}}}} {kind}": f"sum by (model) (rate(runtap_{kind}_calls_total{{{CALLS}}}[5m]))"
                for kind in ("unpriced", "unmetered")
            },
        ),
        Panel("Errors", "Where they arose, a second.", "short", _rates("runtap_errors_total", OF, "type"), True),
    ],
    "Feedback": [
        Panel(
            "Feedback", "What was thought of runs, a second.", "short", _rates("runtap_scores_total", OF, "key"), True
        ),
        Panel(
            "Mean score",
            "Of all time, by what was judged.",
            "short",
            {
                "{{key}}": f"sum by (key) (runtap_score_points{{{OF}}})"
                f' / sum by (key) (runtap_scores_total{{{OF},value=""}})'
            },
        ),
    ],
    "Tools and chains": [
        Panel("Tools", "Tool runs a second.", "reqps", _rates("langchain_tool_calls_total", OF, "tool_name"), True),
        Panel(
            "Failed tools and chains",
            "Share of runs that failed, of a tool, and of a service's chains.",
            "percentunit",
            {**_failed("tool", OF, "tool_name"), **_failed("chain", OF, "service")},
        ),
        Panel(
            "Chains",
            "How long they took, out of a histogram.",
            "s",
            _quantiles("langchain_chain_duration_seconds", OF, "service"),
        ),
    ],
    "Pipeline": [
        Panel(
            "Lag",
            "Records in Kafka that a projection has not applied.",
            "short",
            {"{{projection}}": "sum by (projection) (runtap_worker_lag_records)"},
        ),
        Panel(
            "Ledger",
            "Events that are not in the figures, of all time; in flight: not read yet.",
            "short",
            {
                "{{state}}": 'runtap_ledger_events{state=~"in_flight|lost|quarantined"}',
                "dropped": "sum(runtap_ledger_dropped_events) or vector(0)",
            },
        ),
        Panel(
            "Figures are complete to, ago",
            "Before that instant no event is missing that is not counted.",
            "s",
            {"age": "time() - runtap_complete_to_timestamp_seconds"},
        ),
        Panel(
            "Events applied",
            "A second and worker; a worker that applies none has no work, or stands.",
            "short",
            _rates("runtap_worker_events_total", "", "instance"),
            True,
        ),
        Panel(
            "Seconds a commit",
            "Of a worker in the store.",
            "s",
            {
                "{{instance}}": "rate(runtap_worker_commit_seconds_sum[5m])"
                " / rate(runtap_worker_commit_seconds_count[5m])"
            },
        ),
        Panel(
            "Refusals, waits, dead letters",
            "In five minutes, of all workers. A refusal: another worker owned the partition.",
            "short",
            {
                legend: f"sum(increase(runtap_worker_{name}_total[5m]))"
                for legend, name in (("refused", "fenced"), ("waits", "backoffs"), ("dead letters", "dead_letters"))
            },
        ),
    ],
}


def make_dashboard() -> str:
    """The dashboard as Grafana reads it."""
    made = grafana.Dashboard("runtap").uid("runtap").tags(["langchain", "runtap"]).refresh("30s").time("now-6h", "now")
    made.with_variable(grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for name, metric in (
        ("service", '{__name__=~"langchain_(llm|chain|tool)_calls_total"}'),
        ("environment", '{__name__=~"langchain_(llm|chain|tool)_calls_total",service=~"$service"}'),
        ("model", f"langchain_llm_calls_total{{{OF}}}"),
    ):
        made.with_variable(_variable(name, f"label_values({metric}, {name})"))
    for panel in NUMBERS:
        made.with_panel(_number(panel))
    for title, panels in GRAPHS.items():
        made.with_row(grafana.Row(title))
        for panel in panels:
            made.with_panel(_graph(panel))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _variable(name: str, query: str) -> grafana.QueryVariable:
    variable = grafana.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(query)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).all_value(".*").current(VariableOption(text="All", value="$__all"))


def _targets(panel: Panel, *, instant: bool = False) -> list[Dataquery]:
    found = []
    for ref, (legend, expr) in zip("ABCDEF", panel.queries.items(), strict=False):
        target = Dataquery().ref_id(ref).datasource(SOURCE).expr(expr).legend_format(legend)
        found.append(target.instant() if instant else target.range())
    return found


def _number(panel: Panel) -> stat.Panel:
    made = stat.Panel().title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    made.height(4).span(4).graph_mode(BigValueGraphMode.NONE)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    for target in _targets(panel, instant=True):
        made.with_target(target)
    return made


def _graph(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    made.height(8).span(8).min(0)
    made.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    made.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if panel.is_stacked:
        made.fill_opacity(20).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for target in _targets(panel):
        made.with_target(target)
    return made


if __name__ == "__main__":
    FILE.write_text(make_dashboard())
