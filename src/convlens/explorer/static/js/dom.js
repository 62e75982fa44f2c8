// Elements without a framework: el("p", {class: "note"}, "text", child).

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child === undefined || child === null) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function table(caption, headings, rows) {
  const cell = (tag) => (value) =>
    value instanceof Node && value.tagName === tag.toUpperCase() ? value : el(tag, numeric(value), value);
  const isNumeric = (column) => rows.length && rows.every((row) => (row[column] instanceof Node ? row[column].className?.includes?.("n") : numeric(row[column]).class === "n"));
  const head = headings.map((text, column) => el("th", { scope: "col", class: isNumeric(column) ? "n" : undefined }, text));
  const body = rows.map((row) => el("tr", {}, row.map(cell("td"))));
  const made = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}

function numeric(value) {
  return typeof value === "number" || /^[\d.,×%\s–-]+( [kMGTµm]?[a-zA-Z]*)?$/.test(String(value)) ? { class: "n" } : {};
}

export function figure(caption, ...content) {
  return el("figure", {}, ...content, el("figcaption", {}, caption));
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return (value || 0).toLocaleString("en-US"); // no “-0”
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(digits));
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? "–" : (100 * value).toFixed(digits) + " %";
}

export function short(value, unit = "") {
  if (value === null || value === undefined) return "–";
  const steps = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [size, prefix] of steps) if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + " " + prefix + unit;
  return value + (unit ? " " + unit : "");
}
