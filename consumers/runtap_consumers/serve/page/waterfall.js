// The runs of a trace on one time axis.

import { here, to } from "./address.js";
import { h } from "./dom.js";
import { count, duration, money, UNKNOWN } from "./figures.js";
import { link } from "./parts.js";
import { say } from "./words.js";

const WIDE = 1000;
const MOST_INDENTED = 14;

/** Names and values, those without a value left out. */
export function factsOf(facts) {
  return h(
    "dl",
    { class: "facts" },
    facts
      .filter(([, value]) => value !== null && value !== undefined && value !== "" && !(Array.isArray(value) && !value.length))
      .map(([name, value]) => h("div", {}, h("dt", {}, say(name)), h("dd", {}, value))),
  );
}

/** A row a run; `chosen`: the id of the run whose facts and content are shown. */
export function waterfall(trace, chosen) {
  const whole = trace.duration_seconds || 1e-9;
  const children = new Map(trace.runs.map((run) => [run.run_id, []]));
  for (const run of trace.runs) if (run.parent_run_id !== run.run_id) children.get(run.parent_run_id)?.push(run);
  for (const each of children.values()) each.sort((one, other) => one.offset_seconds - other.offset_seconds);
  const marks = [0, 0.25, 0.5, 0.75].map((part) => h("span", {}, duration(part * whole)));
  return h(
    "div",
    { class: "scroll", tabindex: "0" },
    h(
      "table",
      { class: "waterfall" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", {}, say("name")),
          h("th", { class: "n" }, say("duration_seconds")),
          h("th", { class: "n w" }, say("self_seconds")),
          h("th", { class: "n w" }, say("tokens")),
          h("th", { class: "n w" }, say("cost")),
          h("th", { class: "axis" }, h("div", {}, marks)),
        ),
      ),
      h(
        "tbody",
        {},
        trace.runs.flatMap((run) => {
          const isChosen = run.run_id === chosen;
          return [
            row(run, whole, isChosen, children.get(run.run_id)),
            isChosen ? h("tr", { class: "detail", key: `of ${run.run_id}` }, h("td", { colspan: "6" }, detail(run))) : [],
          ];
        }),
      ),
    ),
  );
}

function row(run, whole, isChosen, children) {
  const name = run.name ?? run.run_type,
    model = run.model ?? run.request_model;
  return h(
    "tr",
    { key: run.run_id, class: `${run.status === "error" ? "failed" : run.status}${isChosen ? " chosen" : ""}` },
    h(
      "td",
      { class: `name d${Math.min(run.depth, MOST_INDENTED)}` },
      h(
        "a",
        {
          href: here({ run: isChosen ? "none" : run.run_id }),
          "aria-expanded": String(isChosen),
          title: `${run.run_type} ${name} ${model ?? ""}`,
        },
        h("span", { class: `type ${run.run_type === "llm" ? "llm" : ""}` }, run.run_type),
        " ",
        name,
        model ? h("span", { class: "dim" }, ` ${model}`) : null,
      ),
    ),
    h("td", { class: "n" }, duration(run.duration_seconds)),
    h("td", { class: "n w" }, duration(run.self_seconds)),
    h("td", { class: "n w" }, run.input_tokens === null ? "" : `${count(run.input_tokens)} / ${count(run.output_tokens)}`),
    h("td", { class: "n w" }, run.run_type === "llm" ? money(run.cost_usd) : ""),
    h("td", { class: "axis" }, bars(run, whole, children)),
  );
}

/** Where a run was, and, over it, when none of its children ran. */
function bars(run, whole, children) {
  const scale = WIDE / whole,
    begin = run.offset_seconds,
    end = begin + (run.duration_seconds ?? 0);
  const path = [];
  let free = begin;
  const busy = (until) => {
    if (until > free)
      path.push(
        `M${(scale * free).toFixed(1)} 2h${Math.max(1, scale * (until - free)).toFixed(1)}v10h-${Math.max(1, scale * (until - free)).toFixed(1)}z`,
      );
  };
  for (const child of children) {
    busy(Math.min(child.offset_seconds, end));
    free = Math.max(free, child.offset_seconds + (child.duration_seconds ?? 0));
  }
  busy(end);
  return h(
    "svg",
    { viewBox: `0 0 ${WIDE} 14`, preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect", {
      class: "wait",
      x: Math.min(scale * begin, WIDE - 2).toFixed(1),
      y: 2,
      width: Math.max(2, scale * (end - begin)).toFixed(1),
      height: 10,
    }),
    h("path", { class: "busy", d: path.join("") || "M0 0" }),
  );
}

function detail(run) {
  const number = (name) => [`fact.${name}`, run[name] === null ? null : count(run[name])];
  const facts = [
    ["run_type", run.run_type],
    ["fact.run_id", h("code", {}, run.run_id)],
    ["fact.parent_run_id", run.parent_run_id ? h("code", {}, run.parent_run_id) : null],
    ["provider", run.provider],
    ["model", run.model ? link(to("traces", { model: run.model, runs: "all" }), run.model) : null],
    ["fact.request_model", run.request_model],
    ["fact.finish_reason", run.finish_reason],
    ["duration_seconds", run.duration_seconds === null ? null : duration(run.duration_seconds)],
    ["self_seconds", run.self_seconds === null ? null : duration(run.self_seconds)],
    ["fact.first_token_seconds", run.first_token_seconds === null ? null : duration(run.first_token_seconds)],
    ["input_tokens", run.input_tokens === null ? null : count(run.input_tokens)],
    ["output_tokens", run.output_tokens === null ? null : count(run.output_tokens)],
    number("cache_read_tokens"),
    number("cache_write_tokens"),
    number("reasoning_tokens"),
    ["cost", run.run_type === "llm" ? money(run.cost_usd) : null],
    ["fact.error_type", run.error_type],
    ["fact.error_message", run.error_message],
    [
      "fact.error_code",
      [run.error_category, run.error_status_code && `HTTP ${run.error_status_code}`, run.error_code].filter(Boolean).join(", "),
    ],
    ["fact.error_raised_at", run.error_raised_at],
    ["fact.environment", run.environment],
    ["filter.session", run.session_id ? link(to(["session", run.session_id]), run.session_id) : null],
    ["user", run.user_id ? link(to("sessions", { user: run.user_id }), run.user_id) : null],
    ["fact.tags", run.tags?.length ? run.tags.map((tag) => [link(to("traces", { tag, runs: "all" }), tag), " "]) : null],
    ["fact.metadata", run.metadata && Object.keys(run.metadata).length ? JSON.stringify(run.metadata) : null],
  ];
  const said = ["inputs", "outputs"].filter((name) => run.content?.[name] !== null && run.content?.[name] !== undefined);
  return [
    factsOf(facts),
    said.length
      ? said.map((name) => h("div", { class: "content" }, h("h3", {}, say(name)), h("pre", { tabindex: "0" }, shown(run.content[name]))))
      : h("p", { class: "hint" }, say("content.none")),
  ];
}

function shown(content) {
  return typeof content === "string" ? content : (JSON.stringify(content, null, 2) ?? UNKNOWN);
}
