// The confusion matrix as a table whose cells can be reached with the keyboard, and the worst examples.

import { el, figure, percent, table } from "./dom.js";
import { picture } from "./raster.js";

export function matrix(mistakes, names) {
  const totals = mistakes.confusion.map((row) => row.reduce((sum, value) => sum + value, 0));
  const cell = (truth, answer) => {
    const count = mistakes.confusion[truth][answer];
    const share = totals[truth] ? count / totals[truth] : 0;
    const kind = truth === answer ? "right" : "wrong";
    const title = `${count} of ${totals[truth]} ${names[truth]} were called ${names[answer]}`;
    const style = `--share:${Math.min(1, truth === answer ? share : 4 * share).toFixed(3)}`;
    return el("td", { class: count ? "cell " + kind : "cell none", style, title }, count || "·");
  };
  const head = el("tr", {}, el("th", { scope: "col" }, "truth ↓ answer →"), names.map((name) => el("th", { scope: "col" }, name)));
  const rows = names.map((name, truth) =>
    el("tr", {}, el("th", { scope: "row" }, name), names.map((_, answer) => cell(truth, answer)), el("td", { class: "n" }, percent(mistakes.per_class[truth]))));
  const made = el("table", { class: "confusion" }, el("caption", {}, "How often each class was given each name; last column: share that was right"),
    el("thead", {}, head), el("tbody", {}, rows));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Confusion matrix" }, made);
}

export function pairs(mistakes, names) {
  const rows = mistakes.pairs.slice(0, 10).map((pair) => [names[pair.truth], names[pair.answer], pair.count, percent(pair.share)]);
  return rows.length ? table("The pairs confused most", ["truth", "called", "times", "of the class"], rows) : el("p", {}, "Nothing was confused.");
}

export function worst(mistakes, names) {
  const shown = mistakes.worst.map((one, place) => {
    const said = `${names[one.answer]} (${percent(one.confidence, 0)})`;
    const label = `${mistakes.names[place]}: is ${names[one.truth]}, was called ${said}`;
    return figure([el("b", {}, said), el("br"), `is ${names[one.truth]} (${percent(one.truth_probability, 0)})`], picture(mistakes.pictures[place], label));
  });
  return el("div", { class: "grid pictures" }, shown);
}
