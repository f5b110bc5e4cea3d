import { here, to } from "../address.js";
import { ask } from "../api.js";
import { chart, COLOURS, legend } from "../charts.js";
import { count, duration, money, picodollars, share, UNKNOWN } from "../figures.js";
import { card, change, choice, empty, hint, link, panel, runsHref, table, time, weighed, zoneHint } from "../parts.js";
import { known, say } from "../words.js";
import { h } from "../dom.js";

/** Six figures, cost and latency over time, and what stands out. */
export async function overview({ asked, overview: first, parameters }) {
  const stack = parameters.get("stack") || "model";
  const [found, costs, errors, components] = await Promise.all([
    first,
    ask("costs", { ...asked, by: stack }),
    ask("errors", asked),
    ask("components", asked),
  ]);
  return [
    found.figures.calls || found.figures.traces || found.ledger.captured ? null : hint(say("empty.store")),
    cards(found),
    h(
      "div",
      { class: "two" },
      panel(
        null,
        h(
          "div",
          { class: "title" },
          h("h2", {}, say("cost_over_time")),
          choice(
            say("stacked_by"),
            found.cuts.filter((cut) => !["hour", "day", "name", "tag"].includes(cut)).map((cut) => [cut, known("cut", cut)]),
            stack,
            (cut) => here({ stack: cut }),
          ),
        ),
        costs.rows.length ? costChart(costs, stack, found.grain) : empty("costs"),
      ),
      panel(say("latency"), latency(found)),
    ),
    h(
      "div",
      { class: "two" },
      panel(say("bottleneck"), bottleneck(components), link(to("performance"), say("more"))),
      panel(say("latest_errors"), breaking(errors), link(to("errors"), say("more"))),
    ),
  ];
}

function cards(found) {
  const { figures, before, series, before_range: range } = found;
  const of = (name, text, note, href, isBad, show, inPoints) =>
    card({
      label: say(name),
      text,
      note,
      href,
      series: series[name],
      changed: change(figures[name], before[name], isBad, show, range, inPoints),
    });
  return h(
    "div",
    { class: "cards" },
    of(
      "cost_usd",
      money(figures.cost_usd),
      figures.unpriced_calls ? say("calls.unpriced", count(figures.unpriced_calls)) : null,
      to("costs"),
      true,
      money,
    ),
    of("calls", count(figures.calls), null, runsHref({ type: "llm" }), false, count),
    of(
      "error_rate",
      share(figures.error_rate),
      say("error_rate.of", count(figures.failed_traces), count(figures.traces)),
      to("errors"),
      true,
      share,
      true,
    ),
    of(
      "p95_seconds",
      duration(figures.p95_seconds),
      figures.first_token_p95_seconds === null ? null : say("first_token.of", duration(figures.first_token_p95_seconds)),
      to("performance"),
      true,
      duration,
    ),
    of(
      "total_tokens",
      count(figures.total_tokens),
      say("tokens.of", count(figures.input_tokens), count(figures.output_tokens)),
      to("costs", { by: "model" }),
      false,
      count,
    ),
    of("sessions", count(figures.sessions), null, to("sessions"), false, count),
  );
}

/** Cost over time, stacked; what a row is made of is a click away. Also of the costs' view. */
export function costChart(costs, cut, grain) {
  const isOverTime = ["hour", "day"].includes(cut);
  const rows = isOverTime ? [costs.total] : costs.rows.filter((row) => row.cost_usd !== null && picodollars(row.cost_usd) > 0n);
  const shown = rows.slice(0, rows.length > COLOURS ? COLOURS - 1 : COLOURS),
    rest = rows.slice(shown.length);
  const lines = shown.map((row, place) => ({
    label: isOverTime ? say("total") : (row[cut] ?? say("none")),
    colour: `c${place}`,
    values: row.series_usd,
    total: money(row.cost_usd),
    show: (at) => money(row.series_usd[at]),
    href: isOverTime ? null : madeOf(cut, row[cut]),
  }));
  if (rest.length) {
    const values = costs.buckets.map((_, at) => rest.reduce((sum, row) => sum + Number(row.series_usd[at]), 0));
    lines.push({
      label: say("others", rest.length),
      colour: `c${COLOURS - 1}`,
      values,
      show: (at) => dear(values[at]),
      href: to("costs", { by: cut }),
    });
  }
  return [
    chart({
      buckets: costs.buckets,
      grain: grainOf(costs, grain),
      zone: costs.timezone,
      lines,
      format: dear,
      isStacked: true,
      label: say("cost_over_time"),
      open: (from, until) => {
        location.hash = here({ since: from, until: until ?? costs.range.to });
      },
    }),
    legend(lines),
    zoneHint(grainOf(costs, grain), costs.timezone),
  ];
}

function grainOf({ buckets }, grain) {
  const step = buckets.length > 1 ? Date.parse(buckets[1]) - Date.parse(buckets[0]) : 0;
  return step === 0 ? grain : step < 3.6e6 ? "minute" : step < 7.2e6 ? "hour" : "day";
}

/** What a row of costs is made of: its runs where these can be asked for, else a finer cut. */
export function madeOf(cut, value) {
  if (value === null) return to("costs", { by: cut, by2: "model" });
  if (cut === "service") return to("costs", { by: "model", service: value });
  if (cut === "provider" || cut === "environment") return to("costs", { by: "model", [cut]: value });
  if (cut === "root") return to("traces", { name: value });
  if (["model", "user", "name", "tag"].includes(cut)) return runsHref({ type: "llm", [cut]: value });
  return runsHref({ type: "llm", metadata: `${cut.replace(/^metadata\./, "")}=${value}` });
}

function dear(amount) {
  if (amount === UNKNOWN) return amount;
  const value = Number(amount);
  return `$${value === 0 ? "0" : value >= 1 ? value.toFixed(2) : value.toPrecision(2)}`;
}

function latency({ series, buckets, grain, timezone }) {
  const names = ["p95_seconds", "p50_seconds", "first_token_p95_seconds"];
  const lines = names
    .map((name, place) => ({
      label: say(`legend.${name}`),
      colour: ["c0", "c2", "c4"][place],
      values: series[name],
      show: (at) => duration(series[name][at]),
    }))
    .filter((line) => line.values.some((value) => value !== null));
  if (!lines.length) return empty("costs");
  return [
    chart({
      buckets,
      grain,
      zone: timezone,
      lines,
      format: (value) => duration(value),
      label: say("latency"),
      isStacked: false,
      open: (from, until) => {
        location.hash = to("performance", { since: from, until });
      },
    }),
    legend(lines.map((line) => ({ ...line, href: to("performance") }))),
    zoneHint(grain, timezone),
  ];
}

function bottleneck({ self_times: { components } }) {
  const most = components[0]?.self_seconds ?? 0;
  return components.length
    ? table(
        [
          { label: say("run_type"), is: "w", cell: (row) => row.run_type },
          {
            label: say("component"),
            cell: (row) => link(runsHref({ type: row.run_type, name: row.name, model: row.model }), row.model ?? row.name ?? say("none")),
          },
          { label: say("self_seconds"), is: "n", cell: (row) => weighed(duration(row.self_seconds), row.self_seconds, most) },
          { label: say("count"), is: "n", cell: (row) => count(row.runs) },
        ],
        components.slice(0, 6),
      )
    : empty("components");
}

function breaking({ errors }) {
  return errors.groups.length
    ? table(
        [
          { label: say("errors"), is: "n", cell: (group) => count(group.count) },
          {
            label: say("error.what"),
            is: "text",
            cell: (group) => link(to(["trace", group.sample_run_id]), h("b", {}, group.type), " ", group.message ?? group.raised_at ?? ""),
          },
          { label: say("last_seen"), cell: (group) => time(group.last_seen) },
        ],
        errors.groups.slice(0, 6),
      )
    : empty("errors");
}
