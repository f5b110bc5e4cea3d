import { here, to } from "../address.js";
import { ask } from "../api.js";
import { sparkline } from "../charts.js";
import { h } from "../dom.js";
import { count, date, instant, money, UNKNOWN } from "../figures.js";
import { choice, costColumns, empty, hint, link, panel, table } from "../parts.js";
import { known, say } from "../words.js";
import { costChart, madeOf } from "./overview.js";

const TIMES = ["hour", "day"];
const FILTERS = ["provider", "model", "environment"];

/** Costs by one or two names; where the month is going; what has no price. */
export async function costs({ asked, overview: first, parameters }) {
  const by = [parameters.get("by") || "model", parameters.get("by2")].filter(Boolean);
  const where = Object.fromEntries(FILTERS.map((name) => [name, parameters.get(name)]));
  const [found, whole, unpriced, changes] = await Promise.all([
    ask("costs", { ...asked, ...where, by }),
    first,
    ask("unpriced"),
    ask("changes", asked),
  ]);
  return [
    panel(
      null,
      h(
        "div",
        { class: "title" },
        h("h1", {}, say("costs_by")),
        cuts(whole.cuts, by),
        FILTERS.filter((name) => where[name]).map((name) =>
          h(
            "a",
            { class: "chip", href: here({ [name]: null }), "aria-label": say("filter.remove", name) },
            `${known("cut", name)}: ${where[name]} ✕`,
          ),
        ),
      ),
      found.rows.length ? [costChart(found, by[0], whole.grain), costTable(found, by)] : empty("costs"),
      found.source === "runs" ? hint(say("costs.runs")) : null,
    ),
    h(
      "div",
      { class: "two" },
      found.month ? panel(say("month"), month(found)) : null,
      panel(say("unpriced.title"), withoutPrice(unpriced)),
    ),
    panel(say("changes"), whyItChanged(changes)),
  ];
}

function cuts(names, by) {
  const options = names.includes(by[0]) ? names : [by[0], ...names];
  const texts = options.map((name) => [name, known("cut", name)]);
  return [
    choice(say("costs_by"), texts, by[0], (name) => here({ by: name, by2: null })),
    choice(say("and_by"), [["", say("cut.nothing")], ...texts.filter(([name]) => name !== by[0])], by[1] ?? "", (name) =>
      here({ by2: name }),
    ),
  ];
}

function costTable(found, by) {
  const named = (name, row) => {
    const value = row[name];
    if (TIMES.includes(name)) {
      const text = name === "day" ? `${date(value, found.timezone)} (${found.timezone})` : instant(value).slice(0, 11);
      return link(to("costs", { by: "model", since: value, until: following(value, name) }), text);
    }
    return link(madeOf(name, value), value ?? say("none"));
  };
  const { calls, unpriced, input, output, cached, saved, share, cost } = costColumns();
  const isOverTime = TIMES.includes(by[0]);
  const columns = [
    ...by.map((name) => ({ label: known("cut", name), is: "text", cell: (row) => named(name, row) })),
    cost,
    share,
    calls,
    unpriced,
    input,
    output,
    cached,
    saved,
    ...(isOverTime ? [] : [{ label: say("over_time"), is: "w", cell: (row) => sparkline(row.series_usd, say("over_time")) }]),
  ];
  const foot = columns.map((column, place) => ({
    ...column,
    foot: place === 0 ? () => say("total") : place < by.length ? () => "" : column.cell,
  }));
  return table(foot, found.rows, { foot: found.total });
}

/** When an hour or a day ends that begins then: a day later by the calendar, so that a day of 25 hours is whole. */
function following(value, name) {
  if (name !== "day") return new Date(Date.parse(value) + 3.6e6).toISOString();
  const [, day, clock] = /^(\d{4}-\d\d-\d\d)(.*)$/.exec(value);
  const next = new Date(`${day}T00:00:00Z`);
  next.setUTCDate(next.getUTCDate() + 1);
  return `${next.toISOString().slice(0, 10)}${clock}`;
}

function month(found) {
  const { month: at } = found,
    figure = (text, label) => h("div", { class: "figure" }, h("strong", {}, text), h("span", {}, label));
  return [
    h(
      "div",
      { class: "figures" },
      h(
        "a",
        { href: here({ by: "day", by2: null, since: at.from, until: null }) },
        figure(money(at.cost_usd), say("month.so_far", `${date(at.from, found.timezone)} (${found.timezone})`)),
      ),
      at.forecast_usd === null ? null : figure(`≈ ${money(at.forecast_usd)}`, say("month.forecast")),
      at.forecast_usd === null ? null : figure("", say("month.between", money(at.least_usd), money(at.most_usd))),
    ),
    hint(say(at.forecast_usd === null ? "month.none" : "month.method")),
  ];
}

/** The difference from the range before, in parts that add up: of all models, and of each. */
function whyItChanged(found) {
  const models = found.models.filter((row) => row.cost_usd !== "0" || row.cost_before_usd !== "0");
  const range = [instant(found.before.from), instant(found.before.to)];
  if (!models.length) return hint(say("changes.none", ...range));
  const parts = Object.keys(found.parts_usd);
  const amount = (text) => h("span", { class: text === "0" ? "dim" : "" }, text === "0" ? UNKNOWN : signed(text));
  const columns = [
    {
      label: say("model"),
      is: "text",
      cell: (row) => link(madeOf("model", row.model), row.model ?? say("none")),
      foot: () => say("total"),
    },
    { label: say("changes.before"), is: "n w", cell: (row) => money(row.cost_before_usd) },
    { label: say("changes.now"), is: "n w", cell: (row) => money(row.cost_usd) },
    { label: say("changes.difference"), is: "n", cell: (row) => h("strong", {}, amount(row.difference_usd)) },
    ...parts.map((part) => ({
      label: say(`changes.${part}`),
      title: say(`changes.${part}.title`),
      is: "n",
      cell: (row) => amount(row.parts_usd[part]),
    })),
  ];
  return [
    table(
      columns.map((column) => ({ ...column, foot: column.foot ?? column.cell })),
      models,
      { foot: found },
    ),
    hint(say("changes.against", ...range)),
  ];
}

function signed(text) {
  return text.startsWith("-") ? money(text) : `+${money(text)}`;
}

function withoutPrice({ models }) {
  if (!models.length) return hint(say("unpriced.none"));
  return [
    table(
      [
        {
          label: say("model"),
          is: "text",
          cell: (row) => (row.model ? link(to("traces", { runs: "all", type: "llm", model: row.model }), row.model) : UNKNOWN),
        },
        { label: say("provider"), is: "w", cell: (row) => row.provider ?? UNKNOWN },
        { label: say("of_calls"), is: "n", cell: (row) => count(row.unpriced_calls) },
        { label: say("advice"), is: "text", cell: (row) => row.advice },
      ],
      models,
    ),
    hint(say("unpriced.why")),
  ];
}
