import { to } from "../address.js";
import { ask } from "../api.js";
import { h } from "../dom.js";
import { count, duration, UNKNOWN } from "../figures.js";
import { empty, hint, link, panel, status, table, time } from "../parts.js";
import { say } from "../words.js";

/** How far workers are, where each captured event is, and what could not be read. */
export async function pipeline() {
  const [workers, ledger, letters] = await Promise.all([ask("workers"), ask("ledger"), ask("dead-letters", { limit: "100" })]);
  return [
    panel(
      say("ledger"),
      sums(ledger),
      hint(say("ledger.sum")),
      ledger.held_by && hint(say("held_by", ledger.held_by)),
      ledger.shared_emitters.map((one) =>
        h(
          "p",
          { class: "bad" },
          `${one.emitter} (${one.processes.map((each) => `${each.host} ${each.process_id}`).join(", ")}): ${say("shared")}`,
        ),
      ),
    ),
    panel(say("lag"), workers.positions.length ? [positions(workers.positions), hint(say("behind"))] : empty("positions")),
    panel(
      say("by_service"),
      ledger.services.length
        ? rows(ledger.services, [
            {
              label: say("fact.service"),
              is: "text",
              cell: (row) => (row.service ? link(to("overview", { service: row.service }), row.service) : UNKNOWN),
            },
            { label: say("environment"), is: "w", cell: (row) => row.environment ?? UNKNOWN },
          ])
        : empty("emitters"),
    ),
    ledger.emitters.length
      ? panel(
          say("by_emitter"),
          rows(ledger.emitters, [
            { label: say("emitter"), cell: (row) => h("code", { title: row.emitter }, row.emitter.slice(0, 12)) },
            { label: say("status"), cell: (row) => status(row.state) },
            { label: say("fact.service"), is: "w", cell: (row) => row.service ?? UNKNOWN },
            { label: say("host"), is: "w", cell: (row) => `${row.host ?? UNKNOWN}, ${row.process_id ?? UNKNOWN}` },
            { label: say("last_heard"), is: "w", cell: (row) => time(row.last_heard) },
          ]),
        )
      : null,
    ledger.incidents.length
      ? panel(
          say("incidents"),
          table(
            [
              { label: say("at"), cell: (row) => time(row.at) },
              { label: say("projection"), cell: (row) => row.projection },
              { label: say("cause"), cell: (row) => row.kind },
              { label: say("offset"), is: "n", cell: (row) => `${row.partition}/${row.first_offset}–${row.last_offset}` },
            ],
            ledger.incidents,
          ),
        )
      : null,
    panel(
      say("dead_letters"),
      letters.dead_letters.length
        ? table(
            [
              { label: say("at"), cell: (row) => time(row.log_time) },
              { label: say("offset"), is: "n", cell: (row) => `${row.partition}/${row.offset}` },
              { label: say("cause"), is: "text", cell: (row) => row.cause },
              { label: say("events"), is: "n", cell: (row) => count(row.events) },
              { label: say("emitter"), is: "w", cell: (row) => (row.emitter ? h("code", {}, row.emitter.slice(0, 12)) : UNKNOWN) },
            ],
            letters.dead_letters,
          )
        : empty("dead_letters"),
    ),
  ];
}

function total(reasons) {
  return Object.values(reasons).reduce((sum, one) => sum + one, 0);
}

function sums(ledger) {
  const figure = (name, value, isBad) =>
    h("div", { class: "figure" }, h("strong", { class: value && isBad ? "bad" : "" }, count(value)), h("span", {}, say(name)));
  return h(
    "div",
    { class: "figures" },
    figure("captured", ledger.captured),
    figure("applied", ledger.applied),
    figure("flying", ledger.in_flight),
    figure("dropping", total(ledger.dropped), true),
    figure("losing", ledger.lost, true),
    figure("unreadable", ledger.quarantined, true),
    figure("repeats", ledger.repeats),
    figure("impossible", ledger.impossible, true),
    figure("foreign", ledger.foreign, true),
  );
}

function reasons(row) {
  return [
    ["dropping", row.dropped],
    ["losing", row.lost_by_reason],
  ]
    .flatMap(([name, found]) => Object.entries(found).map(([reason, value]) => `${say(name)}: ${reason} ${count(value)}`))
    .join(", ");
}

function rows(found, columns) {
  return table(
    [
      ...columns,
      { label: say("captured"), is: "n", cell: (row) => `${row.captured_is_at_least ? "≥ " : ""}${count(row.captured)}` },
      { label: say("applied"), is: "n", cell: (row) => count(row.applied) },
      { label: say("flying"), is: "n", cell: (row) => count(row.in_flight) },
      { label: say("losing"), is: "n", cell: (row) => count(row.lost) },
      { label: say("unreadable"), is: "n w", cell: (row) => count(row.quarantined) },
      { label: say("reasons"), is: "w text", cell: reasons },
    ],
    found,
  );
}

/** A row a projection, a column a partition: how long ago it had read all that was there. */
function positions(found) {
  const partitions = [...new Set(found.map((row) => row.partition))].sort((one, other) => one - other);
  const at = new Map(found.map((row) => [`${row.projection} ${row.partition}`, row]));
  return table(
    [
      { label: say("projection"), cell: (name) => name },
      ...partitions.map((partition) => ({
        label: `${say("partition")} ${partition}`,
        is: "n",
        cell: (name) => {
          const row = at.get(`${name} ${partition}`);
          const title = row ? `${say("next_offset")} ${count(row.next_offset)}, ${say("read_to")} ${row.read_to ?? UNKNOWN}` : "";
          return h("span", { title }, duration(row?.behind_seconds));
        },
      })),
    ],
    [...new Set(found.map((row) => row.projection))],
  );
}
