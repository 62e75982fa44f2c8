// The page that looks inside the net: input, answers, graph, one layer, one number.

import { el, figure, number, percent, short, table } from "./dom.js";
import { ask, tell } from "./api.js";
import { drawPad } from "./draw.js";
import { graph } from "./net.js";
import { overlay, picture, plane } from "./raster.js";
import { pointed } from "./grid.js";
import { writtenOut } from "./sums.js";

export async function lookPage(main) {
  const net = await ask("net", "api/net");
  if (!net) {
    main.replaceChildren(el("h2", {}, "No net is open"), el("p", {}, "Start with a run: convlens explore runs/digits-lenet5-1"));
    return;
  }
  const state = { input: net, layer: null, channel: 0 };
  const inputPlace = el("div", { class: "input" }), layerPlace = el("section", { class: "layer", "aria-label": "Layer" }), numberPlace = el("section", { class: "number", "aria-label": "One number" });

  function showInput(boxes = [], heat = null) {
    const shown = heat ? overlay(state.input.picture, heat, "the input, with what the unit sees", boxes) : picture(state.input.picture, "the input");
    const answers = state.input.top.map(([name, share]) => el("li", {}, el("span", { class: "bar", style: `--share:${share.toFixed(4)}` }), `${name} ${percent(share)}`));
    inputPlace.replaceChildren(figure(heat ? "outer box: all it could see; inner box: 95 % of its gradient" : "input", shown), el("ol", { class: "answers" }, answers));
  }

  async function use(request) {
    try {
      state.input = { ...state.input, ...(await request) };
      numberPlace.replaceChildren();
      showInput();
      if (state.layer) await openLayer(state.layer);
    } catch (error) { tell(numberPlace, error); }
  }

  async function openLayer(name) {
    state.layer = name;
    for (const node of main.querySelectorAll(".node")) node.classList.toggle("open", node.dataset.layer === name);
    try {
      const layer = await ask("layer", "api/layer", { query: { name } });
      const [channels] = layer.maps.shape;
      const tiles = Array.from({ length: channels }, (_, channel) => {
        const known = layer.looks_like?.[channel];
        const label = `map ${channel} of ${name}`;
        const canvas = plane(layer.maps, channel, label);
        const can = layer.shape.length > 1;
        const at = (r, c) => (layer.shape.length === 2 ? [c] : layer.shape.length === 4 ? [layer.slice, r, c] : [r, c]);
        const map = can ? pointed(canvas, { label, step: layer.step, onpoint: (r, c) => point(name, channel, at(r, c)), onopen: (r, c) => open(name, channel, at(r, c)) }) : canvas;
        return figure([`${channel} `, known?.[0] ? el("small", {}, `≈ ${known[0]} (${known[1].toFixed(2)})`) : null], map);
      });
      const w = layer.window;
      const about = w ? `window ${w.kernel.join("×")}, stride ${w.stride.join("×")}, padding ${w.padding.map((p) => p.join("+")).join(" × ")}, dilation ${w.dilation.join("×")}, groups ${w.groups}` : layer.kind;
      const compare = w ? el("button", { type: "button", id: "compare", onclick: () => algorithms(name) }, "compare algorithms") : null;
      layerPlace.replaceChildren(el("h3", {}, `${name} → ${layer.shape.join("×")}`), el("p", { class: "note" }, about, layer.step > 1 ? `; every ${layer.step}th place is drawn` : "", " ", compare), el("div", { id: "algorithms" }), el("div", { class: "grid tiles big" }, tiles));
    } catch (error) { tell(layerPlace, error); }
  }

  async function algorithms(name) {
    const place = document.getElementById("algorithms");
    try {
      const compared = await ask("algorithms", "api/algorithms", { query: { name } });
      const rows = compared.rows.map((row) => [row.chosen ? el("b", {}, row.kernel) : row.kernel, row.algorithm, row.time_us === null ? "–" : number(row.time_us) + " µs", row.error === null ? "–" : number(row.error) + " ×", row.memory === null ? "–" : short(row.memory, "B"), row.refusal ?? ""]);
      place.replaceChildren(table(`${short(compared.macs)} multiply-adds; error relative to a direct sum. ${compared.reason}`, ["kernel", "algorithm", "time", "error", "memory", "refuses because"], rows));
    } catch (error) { tell(place, error); }
  }

  async function fetchPixel(name, channel, position) {
    return ask("pixel", "api/pixel", { query: { name, channel, position: position.join(",") } });
  }

  async function point(name, channel, position) {
    try {
      const found = await fetchPixel(name, channel, position);
      showInput([{ box: found.field, kind: "reach", title: "all it could see" }, { box: found.core, kind: "core", title: "95 %" }], found.heat);
    } catch (error) { if (error.name !== "AbortError") tell(numberPlace, error); }
  }

  async function open(name, channel, position) {
    try {
      const found = await fetchPixel(name, channel, position);
      const where = `${name}, channel ${channel}, place ${position.join(", ")}`;
      const parts = [el("h3", {}, `${where}: `, el("span", { id: "value" }, number(found.value, 6)))];
      if (found.sum) parts.push(writtenOut(found.sum), el("button", { type: "button", id: "backwards", onclick: () => backwards(name, channel, position) }, "where its error flows"), el("div", { id: "backward" }));
      else parts.push(el("p", { class: "note" }, "This layer is no convolution: its value comes from the number at the same place before it."));
      numberPlace.replaceChildren(...parts);
      numberPlace.scrollIntoView({ block: "nearest" });
    } catch (error) { tell(numberPlace, error); }
  }

  async function backwards(name, channel, position) {
    const place = document.getElementById("backward");
    try {
      const flow = await ask("backward", "api/backward", { query: { name, channel, position: position.join(",") } });
      const flat = (w) => (Array.isArray(w[0]) ? (Array.isArray(w[0][0]) ? w.flat() : w) : [w]);
      const tables = flow.weight.slice(0, 6).map((w, i) => table(`to the kernel of input channel ${i}`, [], flat(w).map((row) => row.map((value) => number(value)))));
      place.replaceChildren(el("p", { class: "note" }, "An error of 1 here changes each weight by the input under it, and reaches the layer's input through the same window, weighted by the kernel."),
        el("div", { class: "row" }, figure("to the layer's input", plane(flow.input, 0, "gradient at the layer's input")), tables));
    } catch (error) { tell(place, error); }
  }

  async function evidence(method) {
    try {
      const found = await ask("evidence", "api/evidence", { query: { method } });
      showInput([], found.heat);
      inputPlace.querySelector("figcaption").textContent = `what speaks for “${found.class}” ${found.layer ? "at " + found.layer : ""}`;
    } catch (error) { tell(numberPlace, error); }
  }

  async function adversary() {
    try {
      const found = await ask("adversary", "api/adversary");
      const text = found.found ? `A change of at most ${number(found.epsilon)} turns “${found.original}” into “${found.label}” (${percent(found.confidence)}).` : `No change up to ${number(found.epsilon)} turned “${found.original}”.`;
      numberPlace.replaceChildren(el("h3", {}, "On purpose wrong"), el("p", { id: "adversary-text" }, text), el("div", { class: "row" }, figure("changed", picture(found.changed, "the changed input")), figure("the change, enlarged", plane(found.difference, 0, "the change", "diverging"))));
    } catch (error) { tell(numberPlace, error); }
  }

  const samples = net.samples.map((one) => el("button", { type: "button", class: "pick", title: one.name, onclick: () => use(ask("input", `api/sample/${one.number}`, { raw: "" })) }, picture(one, one.name)));
  const file = el("input", { type: "file", id: "file", "aria-label": "Your own input", onchange: (event) => event.target.files[0] && use(ask("input", "api/input", { raw: event.target.files[0] })) });
  const left = el("div", { class: "left" }, inputPlace,
    el("p", {}, el("button", { type: "button", id: "cam", onclick: () => evidence("grad_cam") }, "why (Grad-CAM)"), el("button", { type: "button", onclick: () => evidence("integrated_gradients") }, "why (integrated gradients)"), el("button", { type: "button", id: "fool", onclick: adversary }, "fool it")),
    el("label", { class: "drop" }, "Your own: choose a file, or drop it anywhere ", file),
    net.kind === "image" ? el("details", {}, el("summary", {}, "Draw"), drawPad((blob) => use(ask("input", "api/input", { raw: blob })))) : null,
    samples.length ? el("details", { open: true }, el("summary", {}, "Samples"), el("div", { class: "grid samples" }, samples)) : null);
  main.replaceChildren(el("h2", {}, net.title), el("p", { class: "lead" }, `${short(net.weights)} weights, ${short(net.macs)} multiply-adds. Choose a layer; point at a place in a map to see its field, click to take the number apart.`),
    el("div", { class: "look" }, left, graph(net, openLayer), el("div", { class: "right" }, layerPlace, numberPlace)));
  main.ondragover = (event) => event.preventDefault();
  main.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) use(ask("input", "api/input", { raw: event.dataTransfer.files[0] })); };
  showInput();
  const first = net.layers.find((layer) => layer.has_maps);
  if (first) await openLayer(first.name);
}
