// The frame: what is chosen, which view is shown, and when it is asked again.

import { asked, DEFAULT_SINCE, here, readAddress, to } from "./address.js";
import { ask, changes, keepToken } from "./api.js";
import { h, update } from "./dom.js";
import { date } from "./figures.js";
import { choice, statusStrip, tokenForm, wrong } from "./parts.js";
import { alerts } from "./views/alerts.js";
import { costs } from "./views/costs.js";
import { errors } from "./views/errors.js";
import { overview } from "./views/overview.js";
import { performance as components } from "./views/performance.js";
import { pipeline } from "./views/pipeline.js";
import { session, sessions } from "./views/sessions.js";
import { trace, traces } from "./views/traces.js";
import { choose, language, say } from "./words.js";

const EVERY_MS = 5000;
const RANGES = ["1h", "24h", "7d", "30d"];
const MENU = ["overview", "costs", "performance", "errors", "sessions", "traces", "alerts", "pipeline"];
// A view of one session or trace belongs to the list of them.
const LISTS = { session: "sessions", trace: "traces" };
const VIEWS = new Map(
  Object.entries({ overview, costs, performance: components, errors, sessions, session, traces, trace, alerts, pipeline }),
);

const THEME = "runtap.theme";
const root = document.documentElement;
const part = (id) => document.getElementById(id);
let round = 0,
  timer = null,
  tried = false,
  wasWrong = false,
  whole = null;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(name) {
  root.dataset.theme = name;
  localStorage.setItem(THEME, name);
}

function menuOf(view) {
  return MENU.includes(view) ? view : VIEWS.has(view) ? LISTS[view] : "overview";
}

function header(found) {
  const { view, parameters } = readAddress(),
    shown = menuOf(view);
  const since = parameters.get("since") || DEFAULT_SINCE,
    isCustom = parameters.has("until") || !RANGES.includes(since);
  const services = found?.services ?? [],
    service = parameters.get("service") ?? "";
  const names = service && !services.includes(service) ? [service, ...services] : services;
  return [
    h("a", { class: "brand", href: to("overview") }, "runtap"),
    h(
      "nav",
      {},
      MENU.map((name) => h("a", { href: to(name), "aria-current": name === shown ? "page" : null }, say(`view.${name}`))),
    ),
    h(
      "div",
      { class: "choices" },
      choice(
        say("range"),
        [...RANGES.map((range) => [range, say(`range.${range}`)]), ["", say("range.custom")]],
        isCustom ? "" : since,
        (range) => (range ? here({ since: range, until: null }) : here(firstDays(found))),
      ),
      isCustom ? days(since, parameters.get("until"), found) : null,
      choice(say("service"), [["", say("service.all")], ...names.map((name) => [name, name])], service, (name) => here({ service: name })),
      h(
        "button",
        {
          class: "plain",
          onclick: () => {
            choose(language() === "zh" ? "en" : "zh");
            show();
          },
        },
        say("language"),
      ),
      h(
        "button",
        {
          class: "plain",
          title: say("theme"),
          "aria-label": say("theme"),
          onclick: () => {
            setTheme(isDark() ? "light" : "dark");
            show();
          },
        },
        "◐",
      ),
      h("span", { class: "live", id: "live", title: say("live.title", new Date().toLocaleTimeString()) }, say("live")),
    ),
  ];
}

/** A range of days of the store's zone; its last day is shown, the address has what follows it. */
function days(since, until, found) {
  const last = until ? moved(dayOf(until, found), /^\d{4}-\d\d-\d\d$/.test(until) ? -1 : 0) : "";
  const field = (label, value, made) =>
    h("input", {
      type: "date",
      "aria-label": label,
      title: label,
      value,
      onchange: (event) => {
        if (event.target.value) location.hash = here(made(event.target.value));
      },
    });
  return h(
    "span",
    { class: "days" },
    field(say("range.since"), dayOf(since, found), (day) => ({ since: day })),
    field(say("range.until"), last, (day) => ({ until: moved(day, 1) })),
  );
}

function dayOf(text, found) {
  if (/^\d{4}-\d\d-\d\d$/.test(text)) return text;
  return Number.isNaN(Date.parse(text)) ? "" : date(text, found?.timezone ?? "UTC");
}

function firstDays(found) {
  const today = date(new Date().toISOString(), found?.timezone ?? "UTC");
  return { since: moved(today, -6), until: moved(today, 1) };
}

function moved(day, by) {
  const at = new Date(`${day}T00:00:00Z`);
  at.setUTCDate(at.getUTCDate() + by);
  return at.toISOString().slice(0, 10);
}

/** Shows what the address says. `isTick`: only where an answer was new. */
async function show(isTick = false) {
  const mine = ++round,
    before = changes,
    address = readAddress();
  const view = VIEWS.get(address.view) ?? overview;
  clearTimeout(timer);
  root.lang = language() === "zh" ? "zh-CN" : "en";
  update(part("skip"), [say("skip")]);
  if (!isTick) update(part("header"), header(whole));
  part("main").classList.toggle("waiting", !isTick);
  const parameters = asked(address.parameters),
    first = ask("overview", parameters);
  // Both at once, and each is shown without the other.
  const [made, found] = await Promise.allSettled([view({ ...address, asked: parameters, overview: first }), first]);
  if (mine !== round) return;
  const nodes = [made.status === "fulfilled" ? made.value : failed(made.reason, address)].flat();
  const strip = found.status === "fulfilled" ? statusStrip(found.value) : [];
  if (found.status === "fulfilled") whole = found.value;
  if (made.status === "fulfilled") tried = false;
  const isNew = !isTick || changes !== before || made.status === "rejected" || wasWrong;
  wasWrong = made.status === "rejected";
  if (isNew) {
    update(part("header"), header(whole));
    update(part("status"), strip);
    update(part("main"), nodes);
    document.title = `${say(`view.${menuOf(address.view)}`)} · runtap`;
  }
  part("live").title = say("live.title", new Date().toLocaleTimeString());
  part("main").classList.remove("waiting");
  part("main").dataset.shown = location.hash || "#/";
  if (!document.hidden) timer = setTimeout(() => show(true), EVERY_MS);
}

function failed(error, { view }) {
  if (error.status === 401) return tokenForm(tried, enter);
  const href = `#/${menuOf(view)}`;
  if (error.status !== undefined) return wrong(error, href);
  // No refusal: a fault of the page.
  console.error(error);
  return wrong({ status: -1, message: String(error) }, href);
}

function enter(token) {
  tried = true;
  keepToken(token);
  show();
}

addEventListener("hashchange", () => {
  show();
  if (!readAddress().parameters.has("run")) scrollTo(0, 0);
});
// Not by its address, which is for views.
part("skip").onclick = (event) => {
  event.preventDefault();
  part("main").focus();
};
// A hidden tab never asks.
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) show(true);
});
if (localStorage.getItem(THEME)) root.dataset.theme = localStorage.getItem(THEME);
show();
