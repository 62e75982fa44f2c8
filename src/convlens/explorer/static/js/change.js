// A layer with another window or other numbers in its kernel: the map at once, shapes, costs and the net's answers.

import { el, figure, number, percent, short, table } from "./dom.js";
import { ask, tell } from "./api.js";
import { curvePlane, plane } from "./raster.js";

export function changeView(name, channel, layer) {
  const w = layer.window, axes = w.kernel.length;
  const start = () => ({ name, channel, kernel_size: [...w.kernel], stride: [...w.stride], padding: w.padding.map(([a]) => a), dilation: [...w.dilation], input_channel: 0, kernel: null });
  let asked = start();
  const even = w.padding.every(([a, b]) => a === b);
  const settings = el("fieldset", { class: "settings" }), kernelPlace = el("div", {}), result = el("div", { id: "changed" });

  function field(key, least) {
    const one = (axis) => el("input", { type: "number", id: `change-${key}${axis}`, min: least, max: 99, value: asked[key][axis], "aria-label": `${key.replace("_", " ")} of axis ${axis}`,
      onchange: (event) => {
        asked[key][axis] = Math.max(least, Math.min(99, Math.round(+event.target.value) || least));
        event.target.value = asked[key][axis];
        if (key === "kernel_size") asked.kernel = null;
        refresh(key === "kernel_size");
      } });
    return el("label", {}, key.replace("_", " ") + " ", Array.from({ length: axes }, (_, axis) => one(axis)));
  }

  function draw() {
    settings.replaceChildren(el("legend", {}, "Window"), field("kernel_size", 1), field("stride", 1), field("padding", 0), field("dilation", 1),
      w.in_channels > 1 ? el("label", {}, "kernel of input channel ", el("input", { type: "number", id: "change-input", min: 0, max: w.in_channels - 1, value: asked.input_channel, onchange: (event) => { asked.input_channel = Math.max(0, Math.min(w.in_channels - 1, Math.round(+event.target.value) || 0)); event.target.value = asked.input_channel; asked.kernel = null; refresh(true); } })) : null,
      el("button", { type: "button", id: "change-reset", onclick: () => { asked = start(); draw(); } }, "as it was"));
    refresh(true);
  }

  function kernelTable(values, size) {
    const columns = size[size.length - 1], rows = values.length / columns;
    asked.kernel = [...values];
    if (values.length > 400) return el("p", { class: "note" }, "This kernel is too large to edit here.");
    const cell = (at) => el("td", {}, el("input", { type: "text", inputmode: "decimal", value: number(values[at]), "aria-label": `kernel row ${Math.floor(at / columns)} column ${at % columns}`,
      onchange: (event) => {
        const value = Number(event.target.value.replace(",", "."));
        if (Number.isFinite(value)) asked.kernel[at] = value;
        else event.target.value = number(asked.kernel[at]);
        refresh(false);
      } }));
    return el("table", { class: "numbers edit", id: "change-kernel" }, el("caption", {}, `the kernel of channel ${channel}; every number can be changed`), el("tbody", {}, Array.from({ length: rows }, (_, r) => el("tr", {}, Array.from({ length: columns }, (_, c) => cell(r * columns + c))))));
  }

  async function refresh(newKernel) {
    try {
      // uneven padding has no field of its own: it stays as it is until it is changed
      const unchanged = !even && String(asked.padding) === String(w.padding.map(([a]) => a));
      const found = await ask("change", "api/change", { body: { ...asked, padding: unchanged ? null : asked.padding } });
      if (newKernel) kernelPlace.replaceChildren(kernelTable(found.kernel, found.kernel_size));
      show(found);
    } catch (error) { tell(result, error); }
  }

  function show(found) {
    const draw = (record, label) => (axes === 1 ? curvePlane({ ...record, shape: [1, 1, record.shape.at(-1)] }, 0, label) : plane(record, 0, label));
    const rows = [
      ["output", layer.shape.join("×"), found.shape.join("×")],
      ["multiply-adds", short(found.was.macs), short(found.now.macs)],
      ["weights", number(found.was.weights), number(found.now.weights)],
      ["output bytes", short(found.was.bytes, "B"), short(found.now.bytes, "B")],
      ["window covers", found.was.sees.join("×"), found.now.sees.join("×")],
    ];
    const answers = found.top
      ? el("ol", { class: "answers" }, found.top.map(([label, share]) => el("li", {}, el("span", { class: "bar", style: `--share:${share.toFixed(4)}` }), `${label} ${percent(share)}`)))
      : el("p", { class: "note" }, "Of another size, so the rest of the net cannot go on from it.");
    result.replaceChildren(
      el("div", { class: "row" }, figure("map as it is", draw(found.before, "the map as it is")), figure("map with the change", draw(found.after, "the map with the change")), figure("the net then answers", answers)),
      table(found.formula.join(" and "), ["", "as it is", "with the change"], rows));
  }

  draw();
  return el("div", { class: "change" }, settings, el("div", { class: "board" }, kernelPlace, result));
}
