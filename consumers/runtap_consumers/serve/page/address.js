// What is shown stands in the address, after `#`: #/costs?since=7d&by=model. A link to it shows the same.

/** Names that go along from view to view. */
const KEPT = ["since", "until", "service"];
export const DEFAULT_SINCE = "24h";

/** `path`: the view and what it is of; `get`: a parameter. */
export function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path
    .split("/")
    .filter(Boolean)
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
  const parameters = new URLSearchParams(query ?? "");
  return { view: parts[0] || "overview", id: parts.slice(1).join("/"), parameters };
}

/** The address of a view, in the range and with the service of now. Empty values are left out. */
export function to(path, changes = {}) {
  const { parameters } = readAddress();
  const kept = new URLSearchParams();
  for (const name of KEPT) if (parameters.get(name)) kept.set(name, parameters.get(name));
  return join(path, kept, changes);
}

/** This view with other parameters; `cursor`, which belongs to what was asked before, goes. */
export function here(changes) {
  const { view, id, parameters } = readAddress();
  if (!("cursor" in changes)) parameters.delete("cursor");
  return join(id ? [view, id] : [view], parameters, changes);
}

function join(path, parameters, changes) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  const query = parameters.toString();
  return `#/${[path].flat().map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/** The range and the service, as the API takes them. */
export function asked(parameters) {
  const found = { since: parameters.get("since") || DEFAULT_SINCE };
  for (const name of ["until", "service"]) if (parameters.get(name)) found[name] = parameters.get(name);
  return found;
}
