// Elements, made and brought up to date. Text is only ever text: nothing here reads markup.

const SVG = new Set(["svg", "path", "rect", "line", "g", "title"]);

/** An element. Children: nodes, text, numbers, lists of these; null and false are left out. */
export function h(name, properties, ...children) {
  const element = SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties ?? {})) set(element, key, value);
  append(element, children);
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on") || key === "keep" || key === "key" || key === "value") {
    element[key] = value;
  } else if (key === "style") {
    // Through the object model: style attributes are what the Content-Security-Policy refuses.
    for (const [property, one] of Object.entries(value)) element.style.setProperty(property, one);
  } else if (key === "href" && !String(value).startsWith("#")) {
    throw new Error(`a link that leaves the page: ${value}`);
  } else {
    element.setAttribute(key, value === true ? "" : value);
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : asText(child));
  }
}

function asText(value) {
  return document.createTextNode(String(value));
}

/** Makes what is shown like what was made anew, so that focus, selection and scrolling stay where they are. */
export function update(element, children) {
  const wanted = children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : asText(child)));
  wanted.forEach((child, place) => {
    const shown = element.childNodes[place];
    if (!shown) element.append(child);
    else if (!isAlike(shown, child)) shown.replaceWith(child);
    else if (shown.nodeType === Node.TEXT_NODE) {
      if (shown.data !== child.data) shown.data = child.data;
    } else if (shown.keep) shown.keep.update(child.keep);
    else copy(shown, child);
  });
  while (element.childNodes.length > wanted.length) element.lastChild.remove();
}

function isAlike(shown, child) {
  return shown.nodeName === child.nodeName && shown.key === child.key && shown.keep?.kind === child.keep?.kind;
}

const HANDLERS = ["onclick", "onchange", "onsubmit", "onkeydown"];

function copy(shown, child) {
  for (const { name } of [...shown.attributes]) {
    // Whether details are open is the reader's.
    if (!child.hasAttribute(name) && !(name === "open" && shown.nodeName === "DETAILS")) shown.removeAttribute(name);
  }
  for (const { name, value } of child.attributes) {
    if (name === "style" || (name === "open" && shown.nodeName === "DETAILS")) continue;
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  if (child.style?.cssText !== shown.style?.cssText) shown.style.cssText = child.style.cssText;
  for (const name of HANDLERS) if (shown[name] !== child[name]) shown[name] = child[name];
  update(shown, [...child.childNodes]);
  if ("value" in child && shown !== document.activeElement && shown.value !== child.value) shown.value = child.value;
}
