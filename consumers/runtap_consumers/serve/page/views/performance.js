import { ask } from "../api.js";
import { h } from "../dom.js";
import { count, duration, share, UNKNOWN } from "../figures.js";
import { change, empty, hint, link, panel, runsHref, table, weighed } from "../parts.js";
import { say } from "../words.js";

const SORTS = {
  self: (row) => row.self_seconds ?? -1,
  total: (row) => row.total_seconds,
  p95: (row) => row.p95_seconds ?? -1,
  count: (row) => row.count,
  errors: (row) => row.errors,
};

/** Components, the bottleneck first. */
export async function performance({ asked, overview: first, parameters }) {
  const { before_range: range } = await first;
  const sorted = Object.hasOwn(SORTS, parameters.get("sort")) ? parameters.get("sort") : "self";
  const [found, { feedback }, earlier] = await Promise.all([
    ask("components", asked),
    ask("feedback", asked),
    ask("components", { service: asked.service, since: range.from, until: range.to }),
  ]);
  const key = ({ run_type, name, model }) => JSON.stringify([run_type, name, model]);
  const selves = new Map(found.self_times.components.map((one) => [key(one), one.self_seconds]));
  const before = new Map(earlier.performance.map((one) => [key(one), one]));
  const rows = found.performance
    .map((row) => ({ ...row, self_seconds: selves.get(key(row)) ?? null, before: before.get(key(row)) ?? {} }))
    .sort((one, other) => SORTS[sorted](other) - SORTS[sorted](one));
  return panel(
    null,
    h("h1", {}, say("bottleneck")),
    rows.length ? components(rows, sorted, range) : empty("components"),
    hint(say("self.of", count(found.self_times.runs))),
    feedback.by_key.length ? [h("h2", {}, say("feedback")), judged(feedback)] : null,
  );
}

/** What was thought of runs: by what was judged, then by model and name. */
function judged({ by_key: keys, by_model: models, by_name: names }) {
  const rows = [
    ...keys.map((row) => ({ ...row, of: [row.service, row.environment].filter(Boolean).join(", ") })),
    ...[...models, ...names].map((row) => ({ ...row, value: null, of: row.name })),
  ];
  return table(
    [
      { label: say("judged"), is: "text", cell: (row) => [row.key, row.value ? h("span", { class: "dim" }, ` ${row.value}`) : null] },
      { label: say("of"), is: "text", cell: (row) => row.of },
      { label: say("count"), is: "n", cell: (row) => count(row.count) },
      { label: say("mean"), is: "n strong", cell: (row) => row.mean ?? UNKNOWN },
    ],
    rows,
  );
}

function components(rows, sorted, range) {
  const most = (name) => Math.max(...rows.map((row) => row[name] ?? 0));
  const [longest, longestSelf] = [most("total_seconds"), most("self_seconds")];
  const runs = (row, more = {}) => runsHref({ type: row.run_type, name: row.name, model: row.model, ...more });
  return table(
    [
      { label: say("run_type"), is: "w", cell: (row) => row.run_type },
      {
        label: say("component"),
        is: "text",
        cell: (row) => [link(runs(row), row.name ?? say("none")), row.model ? h("span", { class: "dim" }, ` ${row.model}`) : null],
      },
      {
        label: say("self_seconds"),
        is: "n",
        sort: "self",
        cell: (row) => weighed(duration(row.self_seconds), row.self_seconds, longestSelf),
      },
      {
        label: say("total_seconds"),
        is: "n w",
        sort: "total",
        cell: (row) => weighed(duration(row.total_seconds), row.total_seconds, longest),
      },
      { label: say("p95"), is: "n strong", sort: "p95", cell: (row) => duration(row.p95_seconds) },
      { label: say("change"), is: "n", cell: (row) => change(row.p95_seconds, row.before.p95_seconds, true, duration, range) },
      { label: say("p50"), is: "n w", cell: (row) => duration(row.p50_seconds) },
      { label: say("p99"), is: "n w", cell: (row) => duration(row.p99_seconds) },
      { label: say("count"), is: "n", sort: "count", cell: (row) => count(row.count) },
      {
        label: say("errors"),
        is: "n",
        sort: "errors",
        cell: (row) =>
          row.errors
            ? link(runs(row, { status: "error" }), count(row.errors), h("span", { class: "dim w" }, ` ${share(row.errors / row.count)}`))
            : "0",
      },
      { label: say("first_token"), is: "n w", cell: (row) => duration(row.first_token_p95_seconds) },
      {
        label: say("speed"),
        is: "n w",
        cell: (row) => (row.output_tokens_per_second === null ? UNKNOWN : row.output_tokens_per_second.toFixed(1)),
      },
    ],
    rows,
    { sorted },
  );
}
