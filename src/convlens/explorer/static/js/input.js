// The input: the picture with what a unit sees or what speaks for a class, the answers, and where others come from.

import { el, figure, number, percent } from "./dom.js";
import { ask, tell } from "./api.js";
import { drawPad } from "./draw.js";
import { overlay, picture, plane } from "./raster.js";

export function inputPanel(net, { onchange }) {
  const shown = el("div", { class: "input" }), why = el("div", { id: "why" });
  let input = net;

  function show(boxes = [], heat = null) {
    const drawn = heat ? overlay(input.picture, heat, "the input, with what the unit sees", boxes) : picture(input.picture, "the input");
    const answers = input.top.map(([name, share]) => el("li", { class: name === input.truth ? "truth" : undefined }, el("span", { class: "bar", style: `--share:${share.toFixed(4)}` }), `${name} ${percent(share)}`));
    const verdict = input.truth === null ? null : el("p", { id: "verdict", class: input.truth === input.top[0][0] ? "right" : "wrong" }, input.truth === input.top[0][0] ? `right: it is ${input.truth}` : `wrong: it is ${input.truth}`);
    shown.replaceChildren(figure(heat ? "white box: all it could see; dashed: 95 % of its gradient" : `input, ${input.size.join("×")}`, drawn), planes(), el("ol", { class: "answers" }, answers), ...(verdict ? [verdict] : []));
  }

  // slices of a volume, bands of a spectrum
  function planes() {
    const choice = input.picture.planes;
    if (!choice) return "";
    const pick = async (values) => {
      try {
        const now = await ask("current", "api/input", { query: { planes: values.join(",") } });
        input = { ...input, ...now };
        show();
      } catch (error) { tell(why, error); }
    };
    const names = choice.shown.length === 3 ? ["red", "green", "blue"] : [choice.kind];
    const sliders = choice.shown.map((value, i) => el("label", { class: "slide" }, names[i] + " ", el("input", { type: "range", id: `plane${i}`, min: 0, max: choice.count - 1, value, "aria-label": `${names[i]} of ${choice.count}`, onchange: (event) => pick(choice.shown.map((old, k) => (k === i ? +event.target.value : old))) }), el("output", {}, value)));
    const toggle = choice.kind === "band" && choice.count > 2 ? el("button", { type: "button", onclick: () => pick(choice.shown.length === 3 ? [choice.shown[1]] : [Math.floor(choice.count / 6), choice.shown[0], choice.count - 1 - Math.floor(choice.count / 6)]) }, choice.shown.length === 3 ? "one band in grey" : "three as colours") : "";
    return el("div", { class: "planes-of-input" }, sliders, toggle);
  }

  async function use(request) {
    try {
      input = { ...input, ...(await request) };
      why.replaceChildren();
      show();
      await onchange();
    } catch (error) { tell(why, error); }
  }
  const useSample = (number) => use(ask("input", `api/sample/${number}`, { raw: "" }));

  // what speaks for the answer, and beside it for the truth, or for the second answer
  async function explain(method) {
    try {
      const other = input.truth_number !== null && input.truth !== input.top[0][0] ? input.truth_number : net.classes.indexOf(input.top[1]?.[0]);
      const first = await ask("evidence0", "api/evidence", { query: { method } });
      const second = other >= 0 ? await ask("evidence1", "api/evidence", { query: { method, target: other } }) : null;
      const tile = (found) => figure(`for “${found.class}”`, overlay(input.picture, found.heat, `what speaks for ${found.class}`));
      const how = method === "grad_cam" ? `Bright places speak for the class (Grad-CAM at ${first.layer}).` : "Bright places matter for the class, for or against it (integrated gradients).";
      why.replaceChildren(el("div", { class: "pair" }, tile(first), second ? tile(second) : ""), el("p", { class: "note" }, how));
    } catch (error) { tell(why, error); }
  }

  async function fool() {
    try {
      const found = await ask("adversary", "api/adversary");
      const text = found.found ? `A change of at most ${number(found.epsilon)} turns “${found.original}” into “${found.label}” (${percent(found.confidence)}).` : `No change up to ${number(found.epsilon)} turned “${found.original}”.`;
      why.replaceChildren(el("div", { class: "pair" }, figure("changed", picture(found.changed, "the changed input")), figure("the change, enlarged", plane(found.difference, 0, "the change", "diverging"))), el("p", { id: "adversary-text" }, text));
    } catch (error) { tell(why, error); }
  }

  const tile = (one) => el("button", { type: "button", class: one.wrong ? "pick missed" : "pick", title: one.answer === null ? one.name : `${one.name}: ${one.truth}, read as ${one.answer}`, "data-number": one.number, onclick: () => useSample(one.number) }, picture(one, one.wrong ? `wrong: ${one.truth} read as ${one.answer}` : one.name));
  const wrong = net.samples.filter((one) => one.wrong), right = net.samples.filter((one) => !one.wrong);
  const file = el("input", { type: "file", id: "file", "aria-label": "Your own input", onchange: (event) => event.target.files[0] && use(ask("input", "api/input", { raw: event.target.files[0] })) });
  const place = el("div", { class: "left" }, shown,
    el("div", { class: "tabs", role: "group", "aria-label": "Why" }, el("button", { type: "button", id: "cam", onclick: () => explain("grad_cam") }, "why?"), el("button", { type: "button", id: "integrated", onclick: () => explain("integrated_gradients") }, "why, pixel by pixel"), el("button", { type: "button", id: "fool", onclick: fool }, "fool it")), why,
    wrong.length ? el("details", { open: true, id: "missed" }, el("summary", {}, `Read wrongly (${wrong.length})`), el("div", { class: "grid samples" }, wrong.map(tile))) : null,
    right.length ? el("details", { open: true }, el("summary", {}, "Samples"), el("div", { class: "grid samples" }, right.map(tile))) : null,
    el("label", { class: "drop" }, "Your own: choose a file, or drop it anywhere ", file),
    net.kind === "image" ? el("details", {}, el("summary", {}, "Draw"), drawPad((blob) => use(ask("input", "api/input", { raw: blob })))) : null);
  show();
  return { place, show, useSample, useFile: (blob) => use(ask("input", "api/input", { raw: blob })) };
}
