import { here, to } from "../address.js";
import { ask } from "../api.js";
import { h } from "../dom.js";
import { count, duration, money, UNKNOWN } from "../figures.js";
import { empty, hint, idOf, link, panel, runsHref, status, table, time } from "../parts.js";
import { say } from "../words.js";
import { factsOf, waterfall } from "../waterfall.js";

const SHOWN = 500;
const TRACES = 50;

/** Sessions, the newest first. */
export async function sessions({ asked, parameters }) {
  const user = parameters.get("user");
  const { sessions: rows } = await ask("sessions", { ...asked, user, limit: String(SHOWN) });
  return panel(
    null,
    h(
      "div",
      { class: "title" },
      h("h1", {}, say("view.sessions")),
      user
        ? h(
            "a",
            { class: "chip", href: here({ user: null }), "aria-label": say("filter.remove", say("user")) },
            `${say("user")}: ${user} ✕`,
          )
        : null,
    ),
    rows.length
      ? table(
          [
            { label: say("session"), is: "text", cell: (row) => link(to(["session", row.session_id]), row.session_id) },
            { label: say("status"), cell: (row) => status(row.status) },
            { label: say("user_ids"), is: "w", cell: (row) => row.user_ids.map((one) => [link(here({ user: one }), one), " "]) },
            { label: say("started_at"), cell: (row) => time(row.started_at) },
            { label: say("duration_seconds"), is: "n", cell: (row) => duration(row.duration_seconds) },
            { label: say("traces"), is: "n", cell: (row) => link(to("traces", { session: row.session_id }), count(row.traces)) },
            {
              label: say("llm_calls"),
              is: "n w",
              cell: (row) => link(runsHref({ session: row.session_id, type: "llm" }), count(row.llm_calls)),
            },
            {
              label: say("tool_calls"),
              is: "n w",
              cell: (row) => link(runsHref({ session: row.session_id, type: "tool" }), count(row.tool_calls)),
            },
            {
              label: say("errors"),
              is: "n",
              cell: (row) => (row.errors ? link(runsHref({ session: row.session_id, status: "error" }), count(row.errors)) : "0"),
            },
            { label: say("tokens"), is: "n w", cell: (row) => `${count(row.input_tokens)} / ${count(row.output_tokens)}` },
            { label: say("cost"), is: "n strong", cell: (row) => money(row.cost_usd) },
          ],
          rows,
        )
      : empty("sessions"),
    rows.length === SHOWN ? hint(say("cut_off", SHOWN)) : null,
  );
}

/** One session: its traces in order, each with its runs. */
export async function session({ id, parameters }) {
  const found = await ask(`sessions/${encodeURIComponent(id)}`, { limit: String(TRACES) });
  const facts = [
    ["status", status(found.status)],
    ["started_at", time(found.started_at)],
    ["duration_seconds", duration(found.duration_seconds)],
    ["user_ids", found.user_ids.map((user) => [link(to("sessions", { user }), user), " "])],
    ["traces", count(found.traces)],
    ["llm_calls", count(found.llm_calls)],
    ["tool_calls", count(found.tool_calls)],
    ["errors", count(found.errors)],
    ["tokens", `${count(found.input_tokens)} / ${count(found.output_tokens)}`],
    ["cost", money(found.cost_usd)],
  ];
  return [
    panel(null, h("h1", {}, `${say("session")} ${id}`), factsOf(facts)),
    found.kept_traces.map((trace) =>
      panel(
        null,
        h(
          "div",
          { class: "title" },
          h("h2", {}, link(to(["trace", trace.trace_id]), trace.name ?? idOf(trace.trace_id) ?? UNKNOWN)),
          status(trace.status),
          h("span", { class: "dim" }, time(trace.started_at), ` · ${duration(trace.duration_seconds)} · ${money(trace.cost_usd)}`),
        ),
        waterfall(trace, parameters.get("run")),
      ),
    ),
  ];
}
