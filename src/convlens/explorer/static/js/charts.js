// Charts by Plotly, in the page's own colours, redrawn when those change.

import { el } from "./dom.js";

function look() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  return { text: value("--text"), line: value("--line"), colours: ["--blue", "--orange", "--green", "--red"].map(value) };
}

export function chart(label, traces, layout, height = 300) {
  const holder = el("div", { class: "chart", role: "img", "aria-label": label, style: `height:${height}px` });
  const draw = () => {
    const { text, line, colours } = look();
    const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
    const merged = {
      ...layout, height, colorway: colours, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      font: { color: text, size: 13 }, margin: { l: 50, r: 16, t: 12, b: 40, ...layout.margin },
      legend: { orientation: "h", y: 1.15 }, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ticks: "outside", ticklen: 4, tickcolor: "transparent", ...layout.yaxis },
    };
    Plotly.react(holder, traces, merged, { displayModeBar: false, responsive: true });
  };
  // Plotly measures its holder, which has no size before it is in the page
  new ResizeObserver((_, observer) => {
    if (!holder.isConnected) return;
    observer.disconnect();
    draw();
  }).observe(holder);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  return holder;
}

export function curves(epochs) {
  const x = epochs.map((epoch) => epoch.epoch);
  const line = (key, name) => ({ x, y: epochs.map((epoch) => epoch[key]), name, mode: "lines" });
  const last = epochs[epochs.length - 1];
  return [
    chart(`Loss by epoch; at the end ${last.train_loss?.toFixed(4)} on train, ${last.dev_loss?.toFixed(4)} on dev`,
      [line("train_loss", "train"), line("dev_loss", "dev")],
      { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: "loss (nats)", standoff: 10 }, type: "log", dtick: "D2", exponentformat: "none" } }),
    chart(`Accuracy by epoch; at the end ${last.train_accuracy?.toFixed(4)} on train, ${last.dev_accuracy?.toFixed(4)} on dev`,
      [line("train_accuracy", "train"), line("dev_accuracy", "dev")],
      { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: "accuracy", standoff: 10 }, tickformat: ".0%" } }),
  ];
}

export function calibration(bins) {
  const diagonal = { x: [0, 1], y: [0, 1], mode: "lines", name: "as sure as right", line: { dash: "dot" } };
  const points = {
    x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy), mode: "lines+markers", name: "this net",
    marker: { size: bins.map((bin) => 6 + 4 * Math.log10(bin.count)) }, text: bins.map((bin) => `${bin.count} samples`),
  };
  return chart("Accuracy against confidence", [points, diagonal],
    { xaxis: { title: { text: "confidence" }, range: [0, 1.02] }, yaxis: { title: { text: "accuracy", standoff: 10 }, range: [0, 1.02] } });
}

export function counts(byPart, names) {
  const traces = Object.entries(byPart).map(([part, values]) => ({ type: "bar", x: names, y: values, name: part }));
  return chart("Samples of each class", traces, { barmode: "group", yaxis: { title: { text: "samples", standoff: 10 } }, xaxis: { type: "category" } }, 260);
}
