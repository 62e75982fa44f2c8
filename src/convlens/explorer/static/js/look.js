// The page that looks inside the net: input and answers, graph, one layer, one number.

import { el, short } from "./dom.js";
import { ask, tell } from "./api.js";
import { graph } from "./net.js";
import { inputPanel } from "./input.js";
import { layerPanel } from "./layer.js";
import { numberPanel } from "./number.js";

export async function lookPage(main) {
  const net = await ask("net", "api/net");
  if (!net) {
    main.replaceChildren(el("h2", {}, "No net is open"), el("p", {}, "Start with a run: convlens explore runs/digits-lenet5-1"));
    return;
  }
  const one = numberPanel();
  const input = inputPanel(net, { onchange: async () => { one.place.replaceChildren(); await layer.again(); } });
  const layer = layerPanel(net, { onpoint: point, onopen: one.open, onsample: input.useSample });

  async function openLayer(name) {
    for (const node of main.querySelectorAll(".node")) {
      node.classList.toggle("open", node.dataset.layer === name);
      if (node.dataset.layer === name) reveal(node);
    }
    await layer.open(name);
  }

  // bring a box of a long graph into view without moving the page
  function reveal(node) {
    const holder = node.closest(".graph"), box = node.getBoundingClientRect(), around = holder.getBoundingClientRect();
    if (box.top < around.top || box.bottom > around.bottom) holder.scrollTop += box.top - around.top - around.height / 2;
    if (box.left < around.left || box.right > around.right) holder.scrollLeft += box.left - around.left - 8;
  }

  async function point(name, channel, position) {
    try {
      const found = await ask("point", "api/point", { query: { name, channel, position: position.join(",") } });
      input.show([{ box: found.field, kind: "reach", title: "all it could see" }, { box: found.core, kind: "core", title: "95 %" }], found.heat);
    } catch (error) { tell(one.place, error); }
  }

  main.replaceChildren(el("h2", {}, net.title), el("p", { class: "lead" }, `${net.input.join("×")} in, ${net.classes.length} classes out, ${short(net.weights)} weights, ${short(net.macs)} multiply-adds. Choose a layer, then a place in one of its maps.`),
    el("div", { class: "look" }, input.place, graph(net, openLayer), layer.place, one.place));
  main.ondragover = (event) => event.preventDefault();
  main.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) input.useFile(event.dataTransfer.files[0]); };
  const first = net.layers.find((row) => row.has_maps);
  if (first) await openLayer(first.name);
}
