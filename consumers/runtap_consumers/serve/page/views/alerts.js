import { to } from "../address.js";
import { ask } from "../api.js";
import { h } from "../dom.js";
import { empty, link, panel, status, table, time } from "../parts.js";
import { say } from "../words.js";

/** Alerts of the range, the newest first. */
export async function alerts({ asked }) {
  const { alerts: rows } = await ask("alerts", asked);
  return panel(
    null,
    h("h1", {}, say("view.alerts")),
    rows.length
      ? table(
          [
            { label: say("at"), cell: (row) => time(row.at) },
            { label: say("status"), cell: (row) => status(row.status) },
            { label: say("rule"), cell: (row) => row.rule.id },
            { label: say("summary"), is: "text", cell: (row) => row.summary },
            {
              label: say("sample"),
              cell: (row) => (row.trace_id ? link(to(["trace", row.trace_id]), say("trace")) : null),
            },
          ],
          rows,
        )
      : empty("alerts"),
  );
}
