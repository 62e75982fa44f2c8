// The playground: a small convolution whose numbers, window and steps can be changed; the server's operators do the sums.

import { el, number } from "./dom.js";
import { ask, tell } from "./api.js";
import { writtenOut } from "./sums.js";

const MODES = ["zeros", "reflect", "symmetric", "replicate", "circular"];

export async function playPage(main) {
  const lessons = await ask("lessons", "api/lessons");
  const state = {};
  const stage = el("div", {});
  const choices = lessons.map((lesson) =>
    el("button", { type: "button", onclick: () => start(lesson), "data-row": lesson.row }, `${lesson.row} ${lesson.title}`));
  main.replaceChildren(el("h2", {}, "By hand"), el("p", { class: "lead" }, "The worked examples of the lectures, to step through. Every number can be changed, and the answer follows."),
    el("div", { class: "choices", role: "group", "aria-label": "Examples" }, choices), stage);

  function start(lesson) {
    Object.assign(state, { bias: null, stride: [1, 1], padding: [0, 0], dilation: [1, 1], padding_mode: "zeros", flip: false, pool: 0 }, structuredClone({ ...lesson }));
    for (const button of choices) button.setAttribute("aria-pressed", button.dataset.row === lesson.row);
    state.step = 0;
    draw();
  }

  const asked = () => ({ input: state.input, weight: state.weight, bias: state.bias, stride: state.stride, padding: state.padding, dilation: state.dilation, padding_mode: state.padding_mode, flip: state.flip, pool: state.pool });

  let result, timer;
  const output = el("div", { class: "result" });
  async function refresh() {
    try {
      result = await ask("convolve", "api/convolve", { body: asked() });
      showResult();
    } catch (error) { tell(output, error); }
  }

  function draw() {
    clearInterval(timer);
    const settings = el("fieldset", { class: "settings" }, el("legend", {}, "Window"),
      pair("stride", 1, 8), pair("padding", 0, 8), pair("dilation", 1, 8), side(),
      el("label", {}, "beyond the edge ", el("select", { id: "mode", onchange: (event) => { state.padding_mode = event.target.value; drawBoard(); refresh(); } }, MODES.map((mode) => el("option", { value: mode, selected: mode === state.padding_mode }, mode)))),
      el("label", {}, el("input", { type: "checkbox", id: "flip", checked: state.flip, onchange: (event) => { state.flip = event.target.checked; refresh(); } }), " flip the kernel (true convolution)"));
    stage.replaceChildren(el("p", { id: "lesson-text" }, state.text), settings, board, output);
    drawBoard();
    refresh();
  }

  const board = el("div", { class: "board" });
  function drawBoard() {
    const inputs = state.input.map((plane, channel) => editable(`input${state.input.length > 1 ? " channel " + channel : ""}`, plane, "in" + channel, state.padding));
    const kernels = state.weight.map((filter, out) => el("div", { class: "planes" }, filter.map((plane, channel) =>
      editable(`kernel${state.weight.length > 1 ? ` of filter ${out}` : ""}${filter.length > 1 ? `, channel ${channel}` : ""}`, plane, `w${out}-${channel}`)), state.bias ? biasOf(out) : ""));
    board.replaceChildren(el("div", { class: "planes" }, inputs), ...kernels);
  }

  function biasOf(out) {
    return el("label", {}, "bias ", el("input", { type: "number", id: `bias${out}`, step: "any", value: state.bias[out], "aria-label": `bias of filter ${out}`, onchange: (event) => { state.bias[out] = Number(event.target.value) || 0; refresh(); } }));
  }

  function pair(name, low, high) {
    const one = (axis) => el("input", { type: "number", id: `${name}${axis}`, min: low, max: high, value: state[name][axis], "aria-label": `${name} ${axis ? "across" : "down"}`,
      onchange: (event) => { state[name][axis] = Math.max(low, Math.min(high, Math.round(+event.target.value) || low)); event.target.value = state[name][axis]; drawBoard(); refresh(); } });
    return el("label", {}, name + " ", one(0), one(1));
  }

  // a larger kernel gets zeros around, a smaller one loses its edge
  function side() {
    const now = state.weight[0][0];
    const change = (event) => {
      const size = Math.max(1, Math.min(9, Math.round(+event.target.value) || 1));
      state.weight = state.weight.map((filter) => filter.map((plane) => Array.from({ length: size }, (_, r) => Array.from({ length: size }, (_, c) => plane[r]?.[c] ?? 0))));
      draw();
    };
    return el("label", {}, "kernel ", el("input", { type: "number", id: "side", min: 1, max: 9, value: Math.max(now.length, now[0].length), "aria-label": "side of the kernel", onchange: change }));
  }

  // ring: how many rows and columns of padding are drawn around, with the values that the border mode puts there
  function editable(caption, plane, id, ring = [0, 0]) {
    const padded = (r, c) => {
      const y = beyond(r, plane.length, state.padding_mode), x = beyond(c, plane[0].length, state.padding_mode);
      return el("td", { id: `${id}-${r}-${c}`, class: "pad" }, y === null || x === null ? "0" : number(plane[y][x]));
    };
    const cell = (r, c) => (r < 0 || c < 0 || r >= plane.length || c >= plane[0].length ? padded(r, c) : el("td", { id: `${id}-${r}-${c}` }, el("input", { type: "text", inputmode: "decimal", value: number(plane[r][c]), "aria-label": `${caption} row ${r} column ${c}`,
      onchange: (event) => {
        const value = Number(event.target.value.replace(",", "."));
        if (Number.isFinite(value)) plane[r][c] = value;
        else event.target.value = number(plane[r][c]);
        if (ring[0] || ring[1]) mirror(plane, id, ring);
        refresh();
      } })));
    const span = (size, pad) => Array.from({ length: size + 2 * pad }, (_, i) => i - pad);
    return el("table", { class: "numbers edit" }, el("caption", {}, caption), el("tbody", {}, span(plane.length, ring[0]).map((r) => el("tr", {}, span(plane[0].length, ring[1]).map((c) => cell(r, c))))));
  }

  // a changed number shows in the padding too, and the place of the cursor is kept
  function mirror(plane, id, ring) {
    for (let r = -ring[0]; r < plane.length + ring[0]; r++) {
      for (let c = -ring[1]; c < plane[0].length + ring[1]; c++) {
        const td = document.getElementById(`${id}-${r}-${c}`);
        const y = beyond(r, plane.length, state.padding_mode), x = beyond(c, plane[0].length, state.padding_mode);
        if (td?.className.includes("pad")) td.textContent = y === null || x === null ? "0" : number(plane[y][x]);
      }
    }
  }

  function showResult() {
    const [, rows, columns] = result.shape;
    const count = result.output.length * rows * columns;
    state.step = Math.min(state.step, count - 1);
    const open = (channel, r, c) => { state.step = (channel * rows + r) * columns + c; showStep(); };
    const planes = result.output.map((plane, channel) => valuesTable(result.output.length > 1 ? `output ${channel}` : "output", plane, `out${channel}`, (r, c) => open(channel, r, c)));
    const pooled = result.pooled?.map((plane, channel) => valuesTable(`after ${state.pool}×${state.pool} maximum`, plane, `pool${channel}`));
    const gradients = el("details", {}, el("summary", {}, "Backwards: an error of 1 at every output"),
      el("p", { class: "note" }, "Both gradients are convolutions themselves: the error with the flipped kernel, and the input with the error."),
      el("div", { class: "planes" }, result.grad_input.map((plane, channel) => valuesTable(`to input ${channel}`, plane, `gi${channel}`)), result.grad_weight.flatMap((filter, out) => filter.map((plane, channel) => valuesTable(`to kernel ${out}, channel ${channel}`, plane, `gw${out}-${channel}`)))));
    output.replaceChildren(
      el("dl", { class: "facts tight", id: "shape" }, [
        [result.shape.join("×"), "output: filters × rows × columns"], [result.formula.join(" · "), "size down · across"],
        [number(result.macs), "multiply-adds"], [number(result.weights), "weights"], [result.receptive_field.join("×"), "window covers"],
      ].map(([value, label]) => el("div", {}, el("dd", {}, value), el("dt", {}, label)))),
      el("div", { class: "planes" }, planes, pooled ?? []),
      el("p", {}, el("button", { type: "button", id: "back", onclick: () => move(-1) }, "← step"), el("button", { type: "button", id: "next", onclick: () => move(1) }, "step →"), el("button", { type: "button", id: "run", onclick: run }, "run")),
      el("div", { id: "step" }), gradients);
    showStep();
    function move(by) { state.step = (state.step + by + count) % count; showStep(); }
    function run() {
      clearInterval(timer);
      let left = count;
      state.step = count - 1;
      timer = setInterval(() => { if (left-- <= 0 || !output.isConnected) clearInterval(timer); else move(1); }, 600);
    }
  }

  function showStep() {
    const [, rows, columns] = result.shape;
    const channel = Math.floor(state.step / (rows * columns)), r = Math.floor(state.step / columns) % rows, c = state.step % columns;
    for (const old of stage.querySelectorAll(".now, .under")) old.classList.remove("now", "under");
    document.getElementById(`out${channel}-${r}-${c}`)?.classList.add("now");
    const apart = takeApart(channel, r, c);
    for (const [y, x] of apart.places) for (let i = 0; i < state.input.length; i++) document.getElementById(`in${i}-${y}-${x}`)?.classList.add("under");
    document.getElementById("step").replaceChildren(writtenOut(apart, { most: 8 }));
  }

  function takeApart(channel, r, c) {
    const kernel = state.weight[channel].map((plane) => (state.flip ? plane.map((row) => [...row].reverse()).reverse() : plane));
    const [height, width] = [state.input[0].length, state.input[0][0].length];
    const top = r * state.stride[0] - state.padding[0], left = c * state.stride[1] - state.padding[1];
    const places = [];
    const inside = kernel[0].map((row, i) => row.map((_, j) => {
      const y = top + i * state.dilation[0], x = left + j * state.dilation[1];
      const isInside = y >= 0 && x >= 0 && y < height && x < width;
      places.push([y, x]);
      return isInside;
    }));
    const look = (n, size) => beyond(n, size, state.padding_mode);
    const window = state.input.map((plane) => inside.map((row, i) => row.map((_, j) => {
      const y = look(top + i * state.dilation[0], height), x = look(left + j * state.dilation[1], width);
      return y === null || x === null ? 0 : plane[y][x];
    })));
    const products = window.map((plane, k) => plane.map((row, i) => row.map((value, j) => value * kernel[k][i][j])));
    const sums = products.map((plane) => plane.flat().reduce((sum, value) => sum + value, 0));
    const bias = state.bias?.[channel] ?? 0;
    return { inputs: state.input.map((_, i) => i), window, inside, kernel, products, sums, bias, value: result.output[channel][r][c], places };
  }

  const fromAddress = lessons.find((lesson) => location.hash.endsWith("/" + lesson.row));
  start(fromAddress ?? lessons[0]);
}

// the coordinate that a border mode puts in place of one outside; null for zeros
function beyond(n, size, mode) {
  if (n >= 0 && n < size) return n;
  if (mode === "zeros") return null;
  if (mode === "replicate") return Math.max(0, Math.min(size - 1, n));
  if (mode === "circular") return ((n % size) + size) % size;
  if (mode === "reflect") return n < 0 ? -n : 2 * (size - 1) - n;
  return n < 0 ? -n - 1 : 2 * size - 1 - n;
}

function valuesTable(caption, plane, id, onopen) {
  const cell = (value, r, c) => el("td", { id: `${id}-${r}-${c}` }, onopen ? el("button", { type: "button", class: "value", onclick: () => onopen(r, c) }, number(value)) : number(value));
  return el("table", { class: "numbers" }, el("caption", {}, caption), el("tbody", {}, plane.map((row, r) => el("tr", {}, row.map((value, c) => cell(value, r, c))))));
}
