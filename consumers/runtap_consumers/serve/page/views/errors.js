import { to } from "../address.js";
import { ask } from "../api.js";
import { sparkline } from "../charts.js";
import { h } from "../dom.js";
import { count, share, UNKNOWN } from "../figures.js";
import { empty, link, panel, runsHref, table, time, zoneHint } from "../parts.js";
import { say } from "../words.js";

/** Error groups, each with its trend and a sample run; then the last errors. */
export async function errors({ asked }) {
  const { errors: found, trend } = await ask("errors", asked);
  const counts = new Map(trend.groups.map((group) => [JSON.stringify([group.service, group.fingerprint]), group.counts]));
  return [
    panel(
      null,
      h("h1", {}, `${say("view.errors")}: ${count(found.total)}`),
      found.groups.length ? groups(found, counts) : empty("errors"),
      zoneHint(trend.grain, trend.timezone),
    ),
    found.recent.length ? panel(say("recent"), recent(found.recent)) : null,
  ];
}

function groups({ groups: rows, by_type: types }, counts) {
  const rates = new Map(types.map((one) => [JSON.stringify([one.type, one.category]), one]));
  const rate = (group) => {
    const kind = rates.get(JSON.stringify([group.type, group.category]));
    return kind?.rate ? (kind.rate * group.count) / kind.count : null;
  };
  return table(
    [
      { label: say("errors"), is: "n strong", cell: (group) => count(group.count) },
      { label: say("error.rate"), is: "n w", cell: (group) => share(rate(group)) },
      {
        label: say("over_time"),
        cell: (group) => sparkline(counts.get(JSON.stringify([group.service, group.fingerprint])) ?? [], say("over_time")),
      },
      { label: say("error.what"), is: "text", cell: (group) => what(group) },
      { label: say("error.code"), is: "w", cell: (group) => code(group) },
      {
        label: say("fact.service"),
        is: "w",
        cell: (group) => link(runsHref({ status: "error", service: group.service }), group.service ?? UNKNOWN),
      },
      { label: say("last_seen"), cell: (group) => time(group.last_seen) },
      { label: say("first_seen"), is: "w", cell: (group) => time(group.first_seen) },
      { label: say("sample"), cell: (group) => link(to(["trace", group.sample_run_id]), say("trace")) },
    ],
    rows,
  );
}

function what(row) {
  return [h("b", {}, row.type), " ", row.message ?? "", row.raised_at ? h("span", { class: "dim" }, ` ${row.raised_at}`) : null];
}

function code(row) {
  return [row.category, row.status_code && `HTTP ${row.status_code}`, row.code].filter(Boolean).join(", ");
}

function recent(rows) {
  return table(
    [
      { label: say("at"), cell: (row) => time(row.at) },
      { label: say("error.what"), is: "text", cell: (row) => link(to(["trace", row.run_id]), what(row)) },
      { label: say("error.code"), is: "w", cell: (row) => code(row) },
      { label: say("component"), is: "w", cell: (row) => `${row.run_type} ${row.name ?? ""}` },
      { label: say("fact.service"), is: "w", cell: (row) => row.service ?? UNKNOWN },
    ],
    rows,
  );
}
