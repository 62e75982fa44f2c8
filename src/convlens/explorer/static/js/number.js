// One number of a layer: where its window lies, the sum written out, and where its error flows.

import { el, figure, number, table } from "./dom.js";
import { ask, tell } from "./api.js";
import { curvePlane, plane } from "./raster.js";
import { writtenOut } from "./sums.js";

const DIGITS = 6;

export function numberPanel() {
  const place = el("section", { class: "number", "aria-label": "One number" });

  async function open(name, channel, position) {
    try {
      const found = await ask("pixel", "api/pixel", { query: { name, channel, position: position.join(",") } });
      const where = `${name}, channel ${channel}, place ${position.join(", ")}`;
      const parts = [el("h3", {}, `${where}: `, el("span", { id: "value" }, number(found.value, DIGITS)))];
      if (found.sum) parts.push(...apart(found, name, channel, position));
      else parts.push(el("p", { class: "note" }, "This layer is no convolution: its value comes from the numbers before it."));
      place.replaceChildren(...parts);
      place.scrollIntoView({ block: "nearest" });
    } catch (error) { tell(place, error); }
    return place;
  }

  function apart(found, name, channel, position) {
    const { frames, move } = found.under?.planes ? windows(found) : { frames: [], move: () => {} };
    return [
      el("p", { class: "note" }, `The window lies on the layer's input${found.sum.inside.flat(2).every(Boolean) ? "" : "; what sticks out is padding, grey below"}. Each number under it times the kernel's number, all added, and the bias.`),
      frames.length ? el("div", { class: "grid tiles under-window" }, frames) : null,
      writtenOut(found.sum, { most: DIGITS, ontap: move }),
      el("button", { type: "button", id: "backwards", onclick: () => backwards(name, channel, position) }, "where its error flows"),
      el("div", { id: "backward" }),
    ].filter(Boolean);
  }

  async function backwards(name, channel, position) {
    const target = document.getElementById("backward");
    try {
      const flow = await ask("backward", "api/backward", { query: { name, channel, position: position.join(",") } });
      const flat = (w) => (Array.isArray(w[0]) ? (Array.isArray(w[0][0]) ? w.flat() : w) : [w]);
      const tables = flow.weight.slice(0, DIGITS).map((w, i) => table(`to the kernel of input channel ${i}`, [], flat(w).map((row) => row.map((value) => number(value)))));
      target.replaceChildren(el("p", { class: "note" }, "An error of 1 here changes each weight by the input under it, and reaches the layer's input through the same window, weighted by the kernel."),
        el("div", { class: "row" }, figure("to the layer's input", (flow.input.shape[0] === 1 ? curvePlane : plane)(flow.input, 0, "gradient at the layer's input")), tables));
    } catch (error) { tell(target, error); }
  }

  return { place, open };
}

// the planes of the layer's input with the window drawn on them; ``move`` follows the walk through the products
function windows(found) {
  const { planes } = found.under;
  const [count, height, width] = planes.shape;
  const axes = found.sum.start.length;
  const kernel = found.window.kernel.slice(-2), dilation = found.window.dilation.slice(-2), start = found.sum.start.slice(-2);
  if (axes === 1) { kernel.unshift(1); dilation.unshift(1); start.unshift(0); }
  const share = (top, left, high, wide) => `top:${(100 * top) / height}%;left:${(100 * left) / width}%;height:${(100 * high) / height}%;width:${(100 * wide) / width}%`;
  const span = (axis) => dilation[axis] * (kernel[axis] - 1) + 1;
  const marks = [];
  const frames = Array.from({ length: count }, (_, i) => {
    const canvas = axes === 1 ? curvePlane(planes, i, `input channel ${found.sum.inputs[i]}`) : plane(planes, i, `input channel ${found.sum.inputs[i]}`);
    const mark = el("span", { class: "cursor", hidden: true });
    marks.push(mark);
    return figure(`input channel ${found.sum.inputs[i]}`, el("div", { class: "stack clipped" }, canvas, el("span", { class: "box window", style: share(start[0], start[1], span(0), span(1)) }), mark));
  });
  function move(channel, tap) {
    const inPlane = tap % (kernel[0] * kernel[1]);
    const [i, j] = [Math.floor(inPlane / kernel[1]), inPlane % kernel[1]];
    marks.forEach((mark, k) => { mark.hidden = k !== channel; });
    if (marks[channel]) marks[channel].style.cssText = share(start[0] + i * dilation[0], start[1] + j * dilation[1], 1, 1);
  }
  return { frames, move };
}
