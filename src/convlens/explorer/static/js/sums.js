// One number written out: window × kernel, products, sum, bias; product by product, forwards, back or running.

import { el, number } from "./dom.js";

function grid(caption, rows, inside, id) {
  const cells = rows.map((row, r) => el("tr", {}, row.map((value, c) =>
    el("td", { class: inside && !inside[r][c] ? "pad" : undefined, "data-at": `${id}-${r * row.length + c}` }, brief(value)))));
  return el("table", { class: "numbers small" }, el("caption", {}, caption), el("tbody", {}, cells));
}

// a number of the tables: three decimals, so that columns stay narrow; the walk says it in full
function brief(value) {
  if (value === 0 || Math.abs(value) >= 10) return number(value);
  return Math.abs(value) < 5e-4 ? value.toExponential(0) : String(+value.toFixed(3));
}

// windows of 1-D layers are one row, of 3-D layers the planes below each other
function rows(values) {
  if (!Array.isArray(values[0])) return [values];
  return Array.isArray(values[0][0]) ? values.flat() : values;
}

// ontap(channel, tap): the window's input channel and place within it that the walk stands on
export function writtenOut(apart, { most = 6, ontap } = {}) {
  const inside = rows(apart.inside);
  const taps = inside.flat().length;
  const shown = apart.window.slice(0, most).map((window, i) =>
    el("div", { class: "product" },
      grid(`input channel ${apart.inputs[i]}`, rows(window), inside, `w${i}`), el("span", { class: "op" }, "×"),
      grid("kernel", rows(apart.kernel[i]), null, `k${i}`), el("span", { class: "op" }, "="),
      grid("products", rows(apart.products[i]), null, `p${i}`), el("span", { class: "op" }, "→"),
      el("b", { class: "sum" }, number(apart.sums[i], 4))));
  const hidden = apart.window.length - shown.length;
  const rest = apart.sums.slice(most).reduce((sum, value) => sum + value, 0);
  const terms = [...apart.sums.slice(0, most), ...(hidden > 0 ? [rest] : []), apart.bias];
  const line = terms.map((value, i) => (i && value >= 0 ? "+ " : value < 0 ? "− " : "") + number(Math.abs(value), 5)).join(" ");
  const said = el("span", { class: "walk", role: "status" });
  const made = el("div", { class: "written" },
    el("p", { class: "walker" }, walkButtons(), said), shown,
    hidden > 0 ? el("p", { class: "note" }, `and ${hidden} more channels, together ${number(rest, 5)}`) : null,
    el("p", { class: "total" }, `${line} (bias) = `, el("b", { id: "total" }, number(apart.value, 6))));
  const count = taps * shown.length;
  let at = -1, timer = null;

  function walkButtons() {
    const button = (id, text, label, action) => el("button", { type: "button", id, "aria-label": label, onclick: () => { halt(); action(); } }, text);
    return [button("tap-back", "←", "previous product", () => go(at <= 0 ? count - 1 : at - 1)), button("tap-next", "→", "next product", () => go((at + 1) % count)), button("tap-run", "add up", "add the products up one by one", run)];
  }
  function halt() { clearInterval(timer); timer = null; }
  function run() {
    at = -1;
    // a short sum is shown slowly, a long one takes eight seconds
    timer = setInterval(() => { if (at + 1 >= count || !made.isConnected) halt(); else go(at + 1); }, Math.max(40, Math.min(400, 8000 / count)));
  }
  function go(to) {
    at = to;
    const channel = Math.floor(at / taps), tap = at % taps;
    for (const old of made.querySelectorAll(".now")) old.classList.remove("now");
    for (const kind of ["w", "k", "p"]) made.querySelector(`[data-at="${kind}${channel}-${tap}"]`)?.classList.add("now");
    const value = (name) => rows(apart[name][channel]).flat()[tap];
    let sum = 0;
    for (let i = 0; i <= at; i++) sum += rows(apart.products[Math.floor(i / taps)]).flat()[i % taps];
    said.textContent = `${at + 1} of ${count}: ${number(value("window"))} × ${number(value("kernel"))} = ${number(value("products"))}; sum so far ${number(sum, 5)}`;
    ontap?.(channel, tap);
  }
  return made;
}
