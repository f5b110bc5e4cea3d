// Charts: sparklines of our own, and uPlot where there is an axis.

import { h } from "./dom.js";
import { bucket, UNKNOWN } from "./figures.js";
import { language } from "./words.js";

/* global uPlot */

/** How many colours there are for what is stacked. */
export const COLOURS = 8;

/** Bars of a row of numbers, null for what is not known. */
export function sparkline(values, label) {
  const numbers = values.map((value) => (value === null ? 0 : Number(value)));
  const most = Math.max(...numbers, 0),
    width = 100 / Math.max(numbers.length, 12);
  const path = numbers.map((value, place) => {
    const height = most > 0 && value > 0 ? Math.max(1, (22 * value) / most) : 0;
    return height ? `M${(place * width).toFixed(2)} 24v-${height.toFixed(1)}h${(width * 0.78).toFixed(2)}v${height.toFixed(1)}z` : "";
  });
  return h(
    "svg",
    { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("path", { d: path.join("") || "M0 24" }),
  );
}

/** A part of the longest, behind its figure. */
export function bar(part) {
  const width = Math.max(0, Math.min(1, part || 0));
  return h("span", { class: "bar", style: { width: `${(100 * width).toFixed(1)}%` } });
}

function colour(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/**
 * A chart over time. `lines`: {label, values, show, colour}; values are numbers or null. `isStacked`: bars on each other.
 * `zone`: of its days. `open(from, to)`: what a click on a bucket leads to.
 */
export function chart({ buckets, grain, zone, lines, format, isStacked, open, label }) {
  const figure = h("div", { class: "chart", role: "img", "aria-label": label });
  const readout = h("p", { class: "readout" }, " ");
  const box = h("div", {}, figure, readout);
  let data = { buckets, lines, grain },
    plot = null;
  const draw = () => {
    plot?.destroy();
    plot = figure.clientWidth ? new uPlot(options(), values(), figure) : null;
  };
  const values = () => [data.buckets.map((at) => Date.parse(at) / 1000), ...stack(data.lines, isStacked)];
  const options = () => ({
    width: figure.clientWidth,
    height: figure.clientHeight,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: !isStacked } },
    padding: [8, 12, 0, 0],
    scales: {
      x: { time: false, range: () => span(data.buckets, data.grain) },
      y: { range: (_u, _low, high) => [0, high > 0 ? high * 1.08 : 1] },
    },
    axes: [
      {
        stroke: colour("dim"),
        ticks: { show: false },
        grid: { show: false },
        size: 26,
        font: "11px system-ui",
        splits: (u) => some(u.data[0], u.width / 76),
        values: (_u, at) => at.map((one) => bucket(one * 1000, data.grain, zone)),
      },
      {
        stroke: colour("dim"),
        ticks: { show: false },
        grid: { stroke: colour("line"), width: 1 },
        size: 62,
        font: "11px system-ui",
        space: 34,
        values: (_u, marks) => marks.map(format),
      },
    ],
    // The highest of what is stacked is drawn first, the others over it.
    series: [
      {},
      ...order(data.lines, isStacked).map((line) => ({
        stroke: colour(line.colour),
        width: isStacked ? 0 : 1.5,
        fill: isStacked ? colour(line.colour) : undefined,
        spanGaps: true,
        paths: isStacked ? uPlot.paths.bars({ size: [0.82, 48], align: 1 }) : undefined,
        points: { show: !isStacked, size: 4, fill: colour(line.colour) },
      })),
    ],
    hooks: {
      setCursor: [(u) => tell(u.cursor.idx)],
      ready: [
        (u) => {
          u.over.onclick = () => choose(u.cursor.idx);
        },
      ],
    },
  });
  const tell = (place) => {
    const at = place === null || place === undefined ? null : data.buckets[place];
    readout.replaceChildren(
      at ? `${bucket(at, data.grain, zone)}  ` : " ",
      ...(at ? data.lines : [])
        .filter((line) => line.values[place] !== null && Number(line.values[place]) !== 0)
        .flatMap((line) => [
          h("i", { class: "swatch", style: { background: `var(--${line.colour})` } }),
          `${line.label} ${line.show ? line.show(place) : format(line.values[place] ?? UNKNOWN)}   `,
        ]),
    );
  };
  const choose = (place) => {
    if (place !== null && place !== undefined && open) open(data.buckets[place], data.buckets[place + 1]);
  };
  new ResizeObserver(draw).observe(figure);
  box.keep = {
    kind: `chart ${document.documentElement.dataset.theme} ${language()} ${isStacked}`,
    data,
    update: (next) => {
      if (JSON.stringify(next.data) === JSON.stringify(data)) return;
      data = next.data;
      draw();
    },
  };
  return box;
}

const SECONDS = { minute: 60, hour: 3600, day: 86400 };

function span(buckets, grain) {
  const at = buckets.map((one) => Date.parse(one) / 1000);
  return at.length ? [at[0], at[at.length - 1] + SECONDS[grain]] : [0, 1];
}

function some(at, most) {
  const step = Math.max(1, Math.ceil(at.length / Math.max(2, most)));
  return at.filter((_, place) => place % step === 0);
}

function order(lines, isStacked) {
  return isStacked ? [...lines].reverse() : lines;
}

function stack(lines, isStacked) {
  const numbers = lines.map((line) => line.values.map((value) => (value === null ? null : Number(value))));
  if (!isStacked) return numbers;
  const below = [];
  const sums = numbers.map((row) => row.map((value, place) => (below[place] = (below[place] ?? 0) + (value ?? 0))));
  return sums.reverse();
}

/** What the colours of a chart are, each a link to what it is made of. */
export function legend(lines) {
  return h(
    "ul",
    { class: "legend" },
    lines.map((line) =>
      h(
        "li",
        {},
        h("i", { class: "swatch", style: { background: `var(--${line.colour})` } }),
        line.href ? h("a", { href: line.href }, line.label) : line.label,
        line.total ? h("b", {}, line.total) : null,
      ),
    ),
  );
}
