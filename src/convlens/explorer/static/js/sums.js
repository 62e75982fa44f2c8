// One number written out: window × kernel, products, sum, bias; as a table that the keyboard can walk.

import { el, number } from "./dom.js";

function grid(caption, rows, inside, mark) {
  const cells = rows.map((row, r) => el("tr", {}, row.map((value, c) =>
    el("td", { class: [inside && !inside[r][c] ? "pad" : "", mark && mark === r * row.length + c ? "now" : ""].join(" ") || undefined }, number(value)))));
  return el("table", { class: "numbers" }, el("caption", {}, caption), el("tbody", {}, cells));
}

// windows of 1-D layers are one row, of 3-D layers the planes below each other
function rows(values) {
  if (!Array.isArray(values[0])) return [values];
  return Array.isArray(values[0][0]) ? values.flat() : values;
}

export function writtenOut(apart, most = 6) {
  const inside = rows(apart.inside);
  const shown = apart.window.slice(0, most).map((window, i) =>
    el("div", { class: "product" },
      grid(`input channel ${apart.inputs[i]}`, rows(window), inside), el("span", { class: "op" }, "×"),
      grid("kernel", rows(apart.kernel[i])), el("span", { class: "op" }, "="),
      grid("products", rows(apart.products[i])), el("span", { class: "op" }, "→"),
      el("b", { class: "sum" }, number(apart.sums[i], 5))));
  const hidden = apart.window.length - shown.length;
  const rest = apart.sums.slice(most).reduce((sum, value) => sum + value, 0);
  const terms = [...apart.sums.slice(0, most), ...(hidden > 0 ? [rest] : []), apart.bias];
  const line = terms.map((value, i) => (i && value >= 0 ? "+ " : value < 0 ? "− " : "") + number(Math.abs(value), 5)).join(" ");
  return el("div", { class: "written" }, shown,
    hidden > 0 ? el("p", { class: "note" }, `and ${hidden} more channels, together ${number(rest, 5)}`) : null,
    el("p", { class: "total" }, `${line} (bias) = `, el("b", { id: "total" }, number(apart.value, 6))));
}
