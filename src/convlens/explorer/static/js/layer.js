// One layer: its maps, its filters, what excites it, what it would say if it were changed, and how to compute it.

import { el, figure, number, short, table } from "./dom.js";
import { ask, tell } from "./api.js";
import { changeView } from "./change.js";
import { pointed } from "./grid.js";
import { boxed } from "./inside.js";
import { colourPlane, curvePlane, plane } from "./raster.js";

const known = (looks) => (looks?.[0] && looks[1] >= 0.6 ? el("small", {}, `≈ ${looks[0]} (${looks[1].toFixed(2)})`) : null);

export function layerPanel(net, { onpoint, onopen, onsample }) {
  const place = el("section", { class: "layer", "aria-label": "Layer" });
  const state = { name: null, view: "maps", plane: null, channel: 0, layer: null };
  const body = el("div", { class: "view" });

  async function open(name) {
    if (name !== state.name) Object.assign(state, { name, plane: null, channel: 0 });
    try {
      state.layer = await ask("layer", "api/layer", { query: state.plane === null ? { name } : { name, plane: state.plane } });
      if (!views()[state.view]) state.view = "maps";
      frame();
      await views()[state.view][1]();
    } catch (error) { tell(place, error); }
  }

  function views() {
    const conv = state.layer.window;
    return {
      maps: ["Maps", maps],
      ...(conv ? { filters: ["Filters", filters] } : {}),
      ...(net.has_data ? { excited: ["Excited by", excited] } : {}),
      ...(conv ? { change: ["Change it", change], algorithms: ["Algorithms", algorithms] } : {}),
    };
  }

  function frame() {
    const { layer } = state, w = layer.window;
    const about = w ? `${layer.kind}: window ${w.kernel.join("×")}, stride ${w.stride.join("×")}, padding ${w.padding.map(([a, b]) => (a === b ? a : `${a}+${b}`)).join("×")}, dilation ${w.dilation.join("×")}${w.groups > 1 ? `, ${w.groups} groups` : ""}` : layer.kind;
    const tabs = Object.entries(views()).map(([key, [title]]) =>
      el("button", { type: "button", id: "view-" + key, "aria-pressed": String(key === state.view), onclick: () => { state.view = key; open(state.name); } }, title));
    place.replaceChildren(el("h3", {}, `${state.name} → ${layer.shape.join("×")}`), el("p", { class: "note" }, about),
      el("div", { class: "tabs", role: "group", "aria-label": "Views of the layer" }, tabs), body);
  }

  // a slider over slices, bands or channels
  function slider(label, count, value, onpick) {
    const said = el("output", {}, String(value));
    return el("label", { class: "slide" }, label + " ", el("input", { type: "range", min: 0, max: count - 1, value, "aria-label": label, oninput: (event) => { said.textContent = event.target.value; onpick(+event.target.value); } }), said);
  }

  function maps() {
    const { layer, name } = state;
    const [channels, rows, columns] = layer.maps.shape;
    const isCurve = layer.shape.length === 2, isDense = layer.shape.length === 1;
    const at = (r, c) => (isCurve ? [c] : layer.shape.length === 4 ? [layer.slice, r, c] : [r, c]);
    const tiles = Array.from({ length: channels }, (_, channel) => {
      const label = `map ${channel} of ${name}`;
      const canvas = isCurve ? curvePlane(layer.maps, channel, label) : plane(layer.maps, channel, label);
      if (isDense) return figure(`${columns} values`, canvas);
      const map = pointed(canvas, { label, step: layer.step, height: rows, width: columns, onpoint: (r, c) => onpoint(name, channel, at(r, c)), onopen: (r, c) => onopen(name, channel, at(r, c)) });
      return figure([`${channel} `, known(layer.looks_like?.[channel])], map);
    });
    const hidden = layer.shape.length > 1 ? layer.shape[0] - channels : 0;
    body.replaceChildren(
      ...(layer.slice === null ? [] : [slider("slice", layer.shape[1], layer.slice, (value) => { state.plane = value; open(name); })]),
      el("div", { class: isCurve ? "grid tiles curves" : "grid tiles big" }, tiles),
      el("p", { class: "note" }, [isDense ? "" : "Point at a place to see its field on the input; click takes the number apart.", layer.step > 1 ? ` Every ${layer.step}th place is drawn.` : "", hidden > 0 ? ` And ${hidden} more channels.` : ""]));
  }

  async function filters() {
    try {
      const found = await ask("filters", "api/filters", { query: { name: state.name, channel: state.channel, ...(state.plane === null ? {} : { plane: state.plane }) } });
      const isColour = found.in_channels === 3;
      const tiles = found.names.map((name, index) => {
        const label = `filter ${index} of ${state.name}`;
        return figure([`${index} `, known([name, found.similarities[index]])], isColour ? colourPlane(found.weights, index, label) : plane(found.weights, index, label, "diverging"));
      });
      const again = (key) => (value) => { state[key] = value; filters(); };
      body.replaceChildren(
        ...(found.in_channels > 1 && !isColour ? [slider("input channel", found.in_channels, found.channel, again("channel"))] : []),
        ...(found.depth > 1 ? [slider("slice", found.depth, found.plane, again("plane"))] : []),
        el("p", { class: "note" }, isColour ? "As colours; grey is zero." : "Blue is negative, red positive, white zero.", " A name stands where a filter resembles one designed by hand by at least 0.6."),
        el("div", { class: "grid tiles" }, tiles));
    } catch (error) { tell(body, error); }
  }

  function chosenChannel(count, again) {
    return el("label", {}, "channel ", el("input", { type: "number", id: "channel", min: 0, max: count - 1, value: Math.min(state.channel, count - 1), onchange: (event) => { state.channel = Math.max(0, Math.min(count - 1, Math.round(+event.target.value) || 0)); event.target.value = state.channel; again(); } }), ` of ${count}`);
  }

  async function excited() {
    state.channel = Math.min(state.channel, state.layer.shape[0] - 1);
    const list = el("div", { class: "grid pictures" });
    body.replaceChildren(chosenChannel(state.layer.shape[0], excited), el("p", { class: "note", id: "searched" }), list);
    try {
      const found = await ask("excited", "api/excited", { query: { name: state.name, channel: state.channel } });
      document.getElementById("searched").textContent = `Of ${number(found.searched)} training samples those that this channel answers to most, and the part it sees there. Choose one to look into it.`;
      list.replaceChildren(...found.pictures.map((one) => el("button", { type: "button", class: "pick", onclick: () => onsample(one.number) }, figure(`${number(one.value)}${one.truth === null ? "" : `, ${one.truth}`}`, boxed(one, one.size)))));
    } catch (error) { tell(list, error); }
  }

  function change() {
    state.channel = Math.min(state.channel, state.layer.shape[0] - 1);
    body.replaceChildren(chosenChannel(state.layer.shape[0], change), changeView(state.name, state.channel, state.layer));
  }

  async function algorithms() {
    body.replaceChildren(el("p", { class: "note" }, "Measuring every algorithm on this layer…"));
    try {
      const compared = await ask("algorithms", "api/algorithms", { query: { name: state.name } });
      const able = compared.rows.filter((row) => row.time_us !== null), refusing = compared.rows.filter((row) => row.time_us === null);
      const most = Math.max(...able.map((row) => row.time_us));
      const rows = able.map((row) => [row.chosen ? el("td", {}, el("b", {}, row.kernel), " ✓") : row.kernel, row.algorithm, el("td", { class: "n bar-cell" }, el("span", { class: "bar", style: `--share:${(row.time_us / most).toFixed(3)}` }), number(row.time_us) + " µs"), number(row.error) + " ×", short(row.memory, "B")]);
      body.replaceChildren(
        table(`${short(compared.macs)} multiply-adds. ✓ is what the planner takes. Error relative to a direct sum in float32.`, ["kernel", "algorithm", "time", "error", "memory"], rows),
        el("p", { class: "note" }, `The planner’s reason: ${compared.reason}.`),
        refusing.length ? el("details", {}, el("summary", {}, `${refusing.length} more refuse this layer`), table("Why", ["kernel", "reason"], refusing.map((row) => [row.kernel, row.refusal ?? "failed"]))) : null);
    } catch (error) { tell(body, error); }
  }

  return { place, open, again: () => state.name && open(state.name), name: () => state.name };
}
