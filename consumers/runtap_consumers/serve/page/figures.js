// Figures in words. Money is decimal text, and stays it: never a float.

import { language } from "./words.js";

export const UNKNOWN = "–";
const PLACES = 12;

/** Picodollars of a decimal text, exactly. */
export function picodollars(text) {
  const [whole, part = ""] = text.replace("-", "").split(".");
  const amount = BigInt(whole) * 10n ** BigInt(PLACES) + BigInt(part.padEnd(PLACES, "0").slice(0, PLACES));
  return text.startsWith("-") ? -amount : amount;
}

/** Dollars: two places from $100 on, else six; as the commands round. */
export function money(text) {
  if (text === null || text === undefined) return UNKNOWN;
  const amount = picodollars(text),
    size = amount < 0n ? -amount : amount;
  const places = size >= 100n * 10n ** BigInt(PLACES) || size === 0n ? 2 : 6;
  const unit = 10n ** BigInt(PLACES - places);
  let rounded = size / unit;
  const rest = 2n * (size % unit);
  if (rest > unit || (rest === unit && rounded % 2n === 1n)) rounded += 1n;
  const digits = rounded.toString().padStart(places + 1, "0");
  return `${amount < 0n ? "−" : ""}$${separated(digits.slice(0, -places))}.${digits.slice(-places)}`;
}

function separated(digits) {
  return digits.replace(/\B(?=(\d{3})+$)/g, ",");
}

/** A whole number. */
export function count(value) {
  return value === null || value === undefined ? UNKNOWN : separated(String(value));
}

/** A part of one. */
export function share(value) {
  return value === null || value === undefined ? UNKNOWN : `${(100 * value).toFixed(1)}%`;
}

/** A duration to three digits or so. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds < 0.0995) return `${Number((1000 * seconds).toPrecision(3))} ms`;
  if (seconds < 1) return `${(1000 * seconds).toFixed(0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(2)} s`;
  const whole = Math.round(seconds),
    minutes = Math.floor(whole / 60),
    hours = Math.floor(minutes / 60);
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${separated(String(hours))} h ${two(minutes % 60)} m` : `${minutes} m ${two(whole % 60)} s`;
}

const clocks = new Map();

function parts(instant, zone) {
  let clock = clocks.get(zone);
  if (!clock) {
    clock = new Intl.DateTimeFormat("en-CA", {
      timeZone: zone,
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      second: "2-digit",
      hourCycle: "h23",
    });
    clocks.set(zone, clock);
  }
  return Object.fromEntries(clock.formatToParts(new Date(instant)).map(({ type, value }) => [type, value]));
}

/** The zone of whoever reads this. */
export const readersZone = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** An instant on the reader's clock: 11-30 09:09:17. */
export function instant(text) {
  if (!text) return UNKNOWN;
  const { month, day, hour, minute, second } = parts(text, readersZone);
  return `${month}-${day} ${hour}:${minute}:${second}`;
}

/** A day, in the zone whose day it is. */
export function date(text, zone) {
  const { year, month, day } = parts(text, zone);
  return `${year}-${month}-${day}`;
}

/** Where a bucket begins: a day of the store's zone; else the reader's clock. */
export function bucket(text, grain, zone) {
  if (grain === "day") return date(text, zone).slice(5);
  const { month, day, hour, minute } = parts(text, readersZone);
  return hour === "00" && minute === "00" ? `${month}-${day}` : `${hour}:${minute}`;
}

/** How long ago, roughly. */
export function ago(text) {
  const seconds = Math.max(0, (Date.now() - new Date(text)) / 1000);
  const [size, unit] = seconds < 120 ? [1, "second"] : seconds < 7200 ? [60, "minute"] : seconds < 172800 ? [3600, "hour"] : [86400, "day"];
  return new Intl.RelativeTimeFormat(language(), { style: "short" }).format(-Math.round(seconds / size), unit);
}

/** How much more a figure is than before, in permille; null where that says nothing. */
export function growth(value, before) {
  if (value === null || value === undefined || before === null || before === undefined) return null;
  if (typeof value === "string") {
    const [now, then] = [picodollars(value), picodollars(before)];
    return then === 0n ? null : Number(((now - then) * 1000n) / then);
  }
  return before === 0 ? null : Math.round((1000 * (value - before)) / before);
}
