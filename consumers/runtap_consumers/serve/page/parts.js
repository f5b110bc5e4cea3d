// What views are put together from.

import { here, to } from "./address.js";
import { bar, sparkline } from "./charts.js";
import { h } from "./dom.js";
import { ago, count, duration, growth, instant, money, readersZone, share, UNKNOWN } from "./figures.js";
import { known, say } from "./words.js";

/** A titled part of a view. */
export function panel(title, ...children) {
  return h("section", { class: "panel" }, title ? h("h2", {}, title) : null, children);
}

export function hint(...children) {
  return h("p", { class: "hint" }, children);
}

/** Whose days, or whose clock, a chart or a trend goes by. */
export function zoneHint(grain, zone) {
  return hint(grain === "day" ? say("zone.store", zone) : say("zone.reader", readersZone));
}

export function empty(name) {
  return hint(say(`empty.${name}`));
}

/**
 * A table. Columns: {label, cell(row), is: classes ("n": numbers; "w": only where there is room), sort, title}.
 * `sort`: the name by which the address sorts.
 */
export function table(columns, rows, { sorted, foot, rowClass } = {}) {
  const head = columns.map(({ label, is, sort, title }) =>
    h(
      "th",
      {
        class: is,
        scope: "col",
        title,
        "aria-sort": sort && sort === sorted ? "descending" : null,
      },
      sort ? h("a", { href: here({ sort }), title: say("sorted_by", label) }, label) : label,
    ),
  );
  const cells = (row, made) => columns.map(({ is, ...column }) => h("td", { class: is }, column[made]?.(row)));
  return h(
    "div",
    { class: "scroll", tabindex: "0" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, head)),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", { class: rowClass?.(row) }, cells(row, "cell"))),
      ),
      foot ? h("tfoot", {}, h("tr", {}, cells(foot, columns.some(({ foot: own }) => own) ? "foot" : "cell"))) : null,
    ),
  );
}

/** A figure that leads to what it is made of. */
export function link(href, ...children) {
  return h("a", { href }, children);
}

/** An instant on the reader's clock; the title has it as it is. */
export function time(text) {
  return text ? h("time", { datetime: text, title: `${text} (${readersZone})` }, instant(text)) : UNKNOWN;
}

export function status(name) {
  return h("span", { class: `status ${String(name).replace(/[^a-z]/g, "")}` }, known("status", name));
}

/** A figure in front of how it compares to the largest. */
export function weighed(text, value, most) {
  return h("span", { class: "weighed" }, bar(most ? value / most : 0), h("span", {}, text));
}

/** How a figure changed against the range before. `isBad`: more of it is worse. */
export function change(value, before, isBad, showBefore, range, inPoints = false) {
  const title =
    range && before !== null && before !== undefined
      ? say("before", showBefore(before), instant(range.from), instant(range.to))
      : say("nothing_before");
  const steps = inPoints
    ? typeof value === "number" && typeof before === "number"
      ? Math.round(1000 * (value - before))
      : null
    : growth(value, before);
  if (steps === null) return h("span", { class: "change", title }, UNKNOWN);
  if (steps === 0) return h("span", { class: "change", title }, say("no_change"));
  const size = (Math.abs(steps) / 10).toFixed(Math.abs(steps) >= 1000 ? 0 : 1);
  const text = `${steps > 0 ? "▲" : "▼"} ${inPoints ? say("points", size) : `${size}%`}`;
  return h("span", { class: `change ${isBad ? (steps > 0 ? "worse" : "better") : ""}`, title }, text);
}

/** A figure, its change, and how it went. */
export function card({ label, text, note, href, changed, series }) {
  return h(
    "a",
    { class: "card", href },
    h("span", { class: "label" }, label),
    h("strong", {}, text),
    h("span", { class: "beside" }, changed, note ? h("span", { class: "note" }, note) : null),
    sparkline(series, label),
  );
}

/** A choice whose value goes to an address. */
export function choice(label, options, chosen, address) {
  return h(
    "label",
    { class: "choice" },
    h("span", {}, label),
    h(
      "select",
      {
        "aria-label": label,
        onchange: (event) => {
          location.hash = address(event.target.value);
        },
      },
      options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
    ),
  );
}

/** What runs of a component, a model or an error are. */
export function runsHref(filters) {
  return to("traces", { runs: "all", ...filters });
}

export function idOf(text) {
  return text && text.length > 14 ? `${text.slice(0, 13)}…` : text;
}

/** Figures that stay in sight on every view. */
export function statusStrip(found) {
  const { ledger, figures } = found;
  const dropped = Object.values(ledger.dropped).reduce((sum, one) => sum + one, 0);
  const item = (name, value, href, isBad) => link(href, h("span", { class: value && isBad ? "bad" : "" }, say(name, count(value))));
  const complete = found.complete_to
    ? h(
        "span",
        { title: `${found.complete_to}. ${say("complete_to.title")}` },
        say("complete_to", instant(found.complete_to)),
        h("span", { class: "dim" }, ` (${ago(found.complete_to)})`),
      )
    : say("complete_to.unknown");
  return [
    link(to("pipeline"), complete),
    item("lost", ledger.lost, to("pipeline"), true),
    item("dropped", dropped, to("pipeline"), true),
    item("quarantined", ledger.quarantined, to("pipeline"), true),
    item("in_flight", ledger.in_flight, to("pipeline"), false),
    item("unpriced", figures.unpriced_calls, to("costs"), true),
    item("unmetered", figures.unmetered_calls, to("costs"), false),
    h(
      "span",
      { class: "dim zones" },
      `${say("shown", instant(found.range.from), instant(found.range.to))} · ${say(
        "zone.reader",
        readersZone,
      )} · ${say("zone.store", found.timezone)}`,
    ),
  ];
}

/** What went wrong, and what to do next. */
export function wrong(refused, href) {
  const name = [0, 400, 404, 503].includes(refused.status) ? `wrong.${refused.status}` : "wrong.other";
  return h(
    "section",
    { class: "panel wrong", role: "alert" },
    h("h2", {}, say("wrong.title")),
    refused.message ? h("p", {}, refused.message) : null,
    h("p", {}, say(name)),
    h("p", {}, h("a", { class: "button", href }, say("begin_anew"))),
  );
}

/** Asks for the token; `given` is called with it. */
export function tokenForm(wasWrong, given) {
  const field = h("input", {
    type: "password",
    name: "token",
    autocomplete: "current-password",
    "aria-label": say("token"),
    required: true,
  });
  return h(
    "form",
    {
      class: "panel token",
      onsubmit: (event) => {
        event.preventDefault();
        given(event.target.elements.token.value.trim());
      },
    },
    h("h2", {}, say("token")),
    h("p", {}, say("token.ask")),
    wasWrong ? h("p", { class: "bad", role: "alert" }, say("token.wrong")) : null,
    field,
    h("button", {}, say("token.go")),
  );
}

/** Sums of costs as columns: of a cut, of a total. */
export function costColumns() {
  return {
    calls: { label: say("of_calls"), is: "n", cell: (row) => count(row.calls) },
    unpriced: { label: say("unpriced_calls"), is: "n w", cell: (row) => count(row.unpriced_calls) },
    input: { label: say("input_tokens"), is: "n w", cell: (row) => count(row.input_tokens) },
    output: { label: say("output_tokens"), is: "n w", cell: (row) => count(row.output_tokens) },
    cached: { label: say("cached_share"), is: "n", cell: (row) => share(row.cached_share) },
    saved: { label: say("saved_usd"), is: "n w", cell: (row) => money(row.saved_usd) },
    share: { label: say("share"), is: "n w", cell: (row) => (row.cost_usd === null ? UNKNOWN : weighed(share(row.share), row.share, 1)) },
    cost: { label: say("cost"), is: "n strong", cell: (row) => money(row.cost_usd) },
  };
}

/** Runs as a table: what `runtap runs` tells of them. `areRoots`: without what only model calls have. */
export function runsTable(runs, areRoots) {
  const columns = [
    { label: say("started_at"), cell: (run) => time(run.started_at) },
    { label: say("run_type"), is: "w", cell: (run) => run.run_type },
    { label: say("name"), cell: (run) => link(to(["trace", run.run_id]), run.name ?? idOf(run.run_id)) },
    !areRoots && {
      label: say("model"),
      is: "w",
      cell: (run) =>
        (run.model ?? run.request_model)
          ? link(here({ model: run.model ?? run.request_model, runs: "all" }), run.model ?? run.request_model)
          : UNKNOWN,
    },
    {
      label: say("status"),
      cell: (run) => [status(run.status), run.error_type ? h("span", { class: "dim w" }, ` ${run.error_type}`) : null],
    },
    { label: say("duration_seconds"), is: "n", cell: (run) => duration(run.duration_seconds) },
    !areRoots && {
      label: say("tokens"),
      is: "n w",
      cell: (run) => (run.input_tokens === null ? UNKNOWN : `${count(run.input_tokens)} / ${count(run.output_tokens)}`),
    },
    !areRoots && { label: say("cost"), is: "n", cell: (run) => (run.run_type === "llm" ? money(run.cost_usd) : "") },
    {
      label: say("session"),
      is: "w",
      cell: (run) => (run.session_id ? link(to(["session", run.session_id]), idOf(run.session_id)) : UNKNOWN),
    },
    { label: say("user"), is: "w", cell: (run) => (run.user_id ? link(here({ user: run.user_id }), run.user_id) : UNKNOWN) },
  ];
  return table(columns.filter(Boolean), runs);
}
