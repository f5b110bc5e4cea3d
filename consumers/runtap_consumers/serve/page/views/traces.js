import { here, to } from "../address.js";
import { ask } from "../api.js";
import { h } from "../dom.js";
import { count, duration, money } from "../figures.js";
import { choice, empty, hint, link, panel, runsTable, status, time } from "../parts.js";
import { say } from "../words.js";
import { factsOf, waterfall } from "../waterfall.js";

const FILTERS = ["name", "model", "type", "user", "session", "tag", "metadata"];
const STATUSES = ["ok", "error", "interrupted", "cancelled", "open", "abandoned"];

/** Root runs, or runs of any kind, by filters; and the way to any trace by an id. */
export async function traces({ asked, parameters }) {
  const filters = Object.fromEntries([...FILTERS, "status"].map((name) => [name, parameters.get(name)]));
  const isAll = parameters.get("runs") === "all";
  const found = await ask("runs", { ...asked, ...filters, roots: isAll ? null : "true", cursor: parameters.get("cursor"), limit: "100" });
  return panel(
    null,
    h(
      "div",
      { class: "title" },
      h("h1", {}, say("view.traces")),
      search(),
      choice(
        say("view.traces"),
        [
          ["", say("runs.roots")],
          ["all", say("runs.all")],
        ],
        isAll ? "all" : "",
        (runs) => here({ runs }),
      ),
      choice(
        say("status"),
        [["", say("status.any")], ...STATUSES.map((name) => [name, say(`status.${name}`)])],
        filters.status ?? "",
        (name) => here({ status: name }),
      ),
      adding(),
    ),
    h(
      "p",
      { class: "chips" },
      FILTERS.filter((name) => filters[name]).map((name) =>
        h(
          "a",
          { class: "chip", href: here({ [name]: null }), "aria-label": say("filter.remove", say(`filter.${name}`)) },
          `${say(`filter.${name}`)}: ${filters[name]} ✕`,
        ),
      ),
    ),
    found.runs.length ? runsTable(found.runs, !isAll) : empty("runs"),
    found.complete ? null : hint(say("incomplete")),
    h(
      "p",
      { class: "pages" },
      parameters.get("cursor") ? link(here({ cursor: null }), say("newest")) : null,
      " ",
      found.cursor ? link(here({ cursor: found.cursor }), say("older")) : null,
    ),
  );
}

function search() {
  return h(
    "form",
    {
      class: "search",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        const id = event.target.elements.id.value.trim();
        if (id) location.hash = to(["trace", id]);
      },
    },
    h("input", { name: "id", type: "search", placeholder: say("search"), "aria-label": say("search") }),
    h("button", {}, say("find")),
  );
}

function adding() {
  return h(
    "form",
    {
      class: "adding",
      onsubmit: (event) => {
        event.preventDefault();
        const { filter, text } = event.target.elements;
        if (text.value.trim())
          location.hash = here({ [filter.value]: text.value.trim(), ...(filter.value === "model" && { runs: "all" }) });
        text.value = "";
      },
    },
    h(
      "select",
      { name: "filter", "aria-label": say("filter") },
      FILTERS.map((name) => h("option", { value: name }, say(`filter.${name}`))),
    ),
    h("input", { name: "text", "aria-label": say("filter"), placeholder: say("filter") }),
    h("button", {}, say("filter.add")),
  );
}

/** One trace, found by any run's id or how it begins. */
export async function trace({ id, parameters }) {
  const found = await ask(`traces/${encodeURIComponent(id)}`);
  const chosen = parameters.get("run") ?? found.runs.find((run) => run.run_id.startsWith(id) && run.depth > 0)?.run_id ?? null;
  const facts = [
    ["status", status(found.status)],
    ["started_at", time(found.started_at)],
    ["duration_seconds", duration(found.duration_seconds)],
    ["count", count(found.run_count)],
    ["llm_calls", count(found.llm_calls)],
    ["errors", count(found.errors)],
    ["tokens", `${count(found.input_tokens)} / ${count(found.output_tokens)}`],
    ["cost", [money(found.cost_usd), found.unpriced_calls ? ` (${say("calls.unpriced", count(found.unpriced_calls))})` : ""]],
    ["fact.service", `${found.service ?? ""} ${found.environment ?? ""}`],
    ["filter.session", found.session_id ? link(to(["session", found.session_id]), found.session_id) : ""],
    ["user", found.user_id ? link(to("sessions", { user: found.user_id }), found.user_id) : ""],
    ["fact.trace_id", found.trace_id],
  ];
  return [
    panel(null, h("h1", {}, `${say("trace")} ${found.name ?? ""}`), factsOf(facts)),
    panel(
      say("waterfall"),
      waterfall(found, chosen),
      found.is_cut_off ? hint(say("cut_off", count(found.runs.length))) : null,
      hint(say("waterfall.legend")),
    ),
  ];
}
