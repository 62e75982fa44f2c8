// The net as a graph of layers: columns by distance from the input, so that branches lie beside each other.

import { el, short, svg } from "./dom.js";

const WIDE = 190, HIGH = 60, GAP = 20;

export function graph(net, onopen) {
  const depth = new Map([["input", 0]]);
  const sources = new Map();
  for (const [from, to] of net.edges) sources.set(to, [...(sources.get(to) ?? []), from]);
  for (const layer of net.layers) depth.set(layer.name, 1 + Math.max(0, ...(sources.get(layer.name) ?? []).map((name) => depth.get(name) ?? 0)));
  const lanes = new Map();
  const place = new Map([["input", [0, 0]]]);
  for (const layer of net.layers) {
    const row = depth.get(layer.name);
    const lane = lanes.get(row) ?? 0;
    lanes.set(row, lane + 1);
    place.set(layer.name, [lane, row]);
  }
  const columns = Math.max(1, ...lanes.values()), rows = Math.max(...depth.values()) + 1;
  const at = (name) => { const [lane, row] = place.get(name); return [lane * (WIDE + GAP) + 4, row * (HIGH + GAP) + 4]; };
  const lines = net.edges.filter(([from, to]) => place.has(from) && place.has(to)).map(([from, to]) => {
    const [x1, y1] = at(from), [x2, y2] = at(to);
    const [sx, sy, ex, ey] = [x1 + WIDE / 2, y1 + HIGH, x2 + WIDE / 2, y2];
    return svg("path", { d: `M${sx},${sy} C${sx},${sy + GAP} ${ex},${ey - GAP} ${ex},${ey}`, class: "edge" });
  });
  const box = (name, title, lower, cost, action) => {
    const [x, y] = at(name);
    const open = () => action?.();
    const node = svg("g", { class: "node" + (action ? " can" : ""), tabindex: action ? 0 : undefined, role: action ? "button" : "img", "aria-label": `${title}, ${lower} ${cost}`, "data-layer": name, onclick: open,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { open(); event.preventDefault(); } } },
    svg("title", {}, `${title}: ${lower}`), svg("rect", { x, y, width: WIDE, height: HIGH, rx: 6 }),
    svg("text", { x: x + 8, y: y + 18 }, cut(title, 27)), svg("text", { x: x + 8, y: y + 35, class: "lower" }, cut(lower, 32)), svg("text", { x: x + 8, y: y + 51, class: "lower" }, cost));
    return node;
  };
  const nodes = [box("input", "input", net.input.join("×"), net.kind), ...net.layers.map((layer) => {
    const cost = layer.macs ? `${short(layer.macs)} multiply-adds` : layer.weights ? `${short(layer.weights)} weights` : "";
    return box(layer.name, layer.name, `${layer.kind} → ${layer.shape.join("×")}`, cost, () => onopen(layer.name));
  })];
  const width = columns * (WIDE + GAP), height = rows * (HIGH + GAP);
  return el("div", { class: "graph scroll" }, svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "The net, a box for each layer" }, lines, nodes));
}

function cut(text, most) {
  return text.length > most ? "…" + text.slice(text.length - most + 1) : text;
}
