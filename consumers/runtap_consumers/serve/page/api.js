// Asks the server. Each answer is kept with its ETag: what has not changed is not sent again.

const TOKEN = "runtap.token";
const kept = new Map();
const MOST_KEPT = 60;

/** How many answers were new. */
export let changes = 0;

export class Refused extends Error {
  /** `status` 0: nobody answers. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** For this tab alone, and gone with it. */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** The answer of a route; a parameter may be a list. Throws `Refused`. */
export async function ask(route, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, values] of Object.entries(parameters)) {
    for (const value of [values].flat()) if (value) query.append(name, value);
  }
  const url = `api/v1/${route}${query.size ? `?${query}` : ""}`;
  const before = kept.get(url),
    token = sessionStorage.getItem(TOKEN);
  const headers = { ...(before && { "If-None-Match": before.etag }), ...(token && { Authorization: `Bearer ${token}` }) };
  let answer, text;
  try {
    answer = await fetch(url, { headers, cache: "no-store" });
    // Of an unchanged one, too: the browser takes an answer that nobody reads to its end for given up.
    text = await answer.text();
  } catch {
    throw new Refused(0, "");
  }
  if (answer.status === 304 && before) return before.body;
  const body = parsed(text);
  if (!answer.ok || body === null) throw new Refused(answer.status, body?.error ?? answer.statusText);
  changes += 1;
  kept.delete(url);
  kept.set(url, { etag: answer.headers.get("etag"), body });
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return body;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
