// A net from inside: filters, feature maps, fields and evidence.

import { el, figure, number, percent } from "./dom.js";
import { colourPlane, overlay, picture, plane } from "./raster.js";

export function filters(layer) {
  const isColour = layer.weights.shape[1] === 3;
  const tiles = layer.names.map((name, index) => {
    const known = name && layer.similarities[index] >= 0.6 ? `≈ ${name} (${layer.similarities[index].toFixed(2)})` : "";
    const label = `filter ${index} of ${layer.layer} ${known}`;
    const drawn = isColour ? colourPlane(layer.weights, index, label) : plane(layer.weights, index, label, "diverging");
    return figure([`${index} `, el("small", {}, known)], drawn);
  });
  const hidden = layer.count - tiles.length;
  const channels = isColour ? "as colours" : layer.in_channels > 1 ? `first of ${layer.in_channels} input channels` : "blue negative, red positive";
  return el("details", { open: layer.open }, el("summary", {}, `${layer.layer}: ${layer.count} filters, ${channels}`),
    el("div", { class: "grid tiles" }, tiles), hidden > 0 ? el("p", { class: "note" }, `and ${hidden} more`) : null);
}

export function maps(layer) {
  const [channels] = layer.maps.shape;
  const tiles = Array.from({ length: channels }, (_, channel) =>
    figure(String(channel), plane(layer.maps, channel, `map ${channel} of ${layer.layer}`)));
  const silent = layer.silent ? `, ${layer.silent} silent` : "";
  return el("details", { open: layer.open }, el("summary", {}, `${layer.layer} (${layer.kind}): ${layer.shape.join("×")}${silent}`),
    el("div", { class: "grid tiles" }, tiles));
}

export function sample(record) {
  const answers = record.top.map(([name, share]) =>
    el("li", {}, el("span", { class: "bar", style: `--share:${share.toFixed(4)}` }), `${name} ${percent(share)}`));
  const right = record.truth === null ? "" : record.truth === record.top[0][0] ? "right" : `wrong: it is ${record.truth}`;
  const seen = record.evidence.heat
    ? figure(`What speaks for “${record.evidence.class}” (Grad-CAM at ${record.evidence.layer})`,
      overlay(record.picture, record.evidence.heat, `evidence for ${record.evidence.class}`))
    : el("p", { class: "note" }, record.evidence.missing);
  return el("article", { class: "sample" }, el("h3", {}, record.name),
    el("div", { class: "row" }, figure("input", picture(record.picture, record.name)), seen, el("div", {}, el("ol", { class: "answers" }, answers), el("p", {}, right))),
    record.maps.map((layer, place) => maps({ ...layer, open: place === 0 })));
}

export function fields(record) {
  const tiles = record.layers.map((layer) => {
    const size = layer.reach.map(([low, high]) => high - low).join("×");
    const core = layer.core.map(([low, high]) => high - low).join("×");
    const boxes = [{ box: layer.reach, kind: "reach", title: `reach ${size}` }, { box: layer.core, kind: "core", title: `95 % within ${core}` }];
    return figure(`${layer.layer}: sees ${size}, 95 % of it within ${core}`, overlay(record.picture, layer.heat, `what ${layer.layer} sees`, boxes));
  });
  return el("div", { class: "grid pictures wide" }, tiles);
}

export function layerRows(layers) {
  const field = (sizes) => (sizes ? sizes.map((n) => number(n)).join("×") : "all");
  return layers.map((row) => [
    row.name, row.kind, row.output_shape.slice(1).join("×"), number(row.weights), row.macs, row.bytes,
    field(row.receptive_field), row.time_us === null ? "–" : number(row.time_us) + " µs",
    row.percent_of_peak === null ? "–" : Math.round(row.percent_of_peak) + " %", el("span", { title: row.reason ?? "" }, row.kernel ?? ""),
  ]);
}

// a sample with the part that a unit sees of it
export function boxed(one, size) {
  const drawn = picture(one, one.truth ?? "a training sample");
  if (!one.box?.length) return drawn;
  const [[top, bottom], [left, right]] = one.box.length === 1 ? [[0, 1], one.box[0]] : one.box.slice(-2);
  const [height, width] = size.length === 1 ? [1, size[0]] : size.slice(-2);
  const style = `top:${(100 * top) / height}%;height:${(100 * (bottom - top)) / height}%;left:${(100 * left) / width}%;width:${(100 * (right - left)) / width}%`;
  return el("div", { class: "stack" }, drawn, el("span", { class: "box core", style }));
}

export function exciting(record) {
  return record.layers.map((layer, place) => {
    const rows = layer.channels.map((channel, index) => el("div", { class: "exciting" }, el("b", {}, String(index)),
      channel.map((one) => figure(number(one.value), boxed({ ...record.pictures[one.number], box: one.box }, record.size)))));
    const hidden = layer.count - layer.channels.length;
    return el("details", { open: place === 0 }, el("summary", {}, `${layer.layer}: ${layer.count} channels`), el("div", { class: "exciting-list" }, rows), hidden > 0 ? el("p", { class: "note" }, `and ${hidden} more`) : null);
  });
}
