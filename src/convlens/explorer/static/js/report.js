// The report: one section a question, from the record inlined in the page.

import { el, number, percent, short, table } from "./dom.js";
import { calibration, counts, curves } from "./charts.js";
import { matrix, pairs, worst } from "./confusion.js";
import { exciting, fields, filters, layerRows, sample } from "./inside.js";

const record = JSON.parse(document.getElementById("record").textContent);
const names = record.model.classes;

function section(id, title, lead, ...content) {
  return el("section", { id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), lead ? el("p", { class: "lead" }, lead) : null, ...content);
}

function tiles() {
  const evaluation = record.test_evaluations[0];
  const facts = [
    [record.test_accuracy === null ? "–" : percent(record.test_accuracy, 2), evaluation ? `test accuracy, ${number(evaluation.samples)} samples` : "test accuracy: not measured"],
    [record.model.name, `${short(record.model.parameters)} weights`],
    [record.model.input.join("×"), `${record.model.kind} in, ${names.length} classes out`],
    [record.training.seconds === undefined ? "–" : number(record.training.seconds) + " s", `training, ${record.training.epochs ?? record.curves.length} epochs`],
  ];
  return el("dl", { class: "facts" }, facts.map(([value, label]) => el("div", {}, el("dd", {}, value), el("dt", {}, label))));
}

function diagnosis() {
  const { paragraph, findings, ...rest } = record.diagnosis;
  const rows = Object.entries(rest).filter(([, value]) => typeof value === "number" || typeof value === "string").map(([key, value]) => [key.replaceAll("_", " "), number(value)]);
  if (!paragraph && !rows.length && !findings?.length) return null;
  return section("diagnosis", "Diagnosis", paragraph ?? "",
    findings?.length ? el("ul", {}, findings.map((one) => el("li", {}, typeof one === "string" ? one : [one.problem ?? one.text ?? "", one.fix ? el("em", {}, " " + one.fix) : ""]))) : null,
    rows.length ? table("Numbers behind it", ["figure", "value"], rows) : null);
}

function settings(title, values) {
  const flat = [];
  const walk = (prefix, value) => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) for (const [key, item] of Object.entries(value)) walk(prefix ? `${prefix}.${key}` : key, item);
    else flat.push([prefix, Array.isArray(value) ? value.join(", ") : value === null ? "–" : String(value)]);
  };
  walk("", values);
  return el("details", {}, el("summary", {}, title), table(title, ["setting", "value"], flat));
}

function layers() {
  const total = record.layers.reduce((sum, row) => ({ weights: sum.weights + row.weights, macs: sum.macs + row.macs }), { weights: 0, macs: 0 });
  const rows = layerRows(record.layers).map((row) => row.map((value, i) => (i === 4 || i === 5 ? short(value) : value)));
  return section("layers", "Layers and costs", `${short(total.weights)} weights, ${short(total.macs)} multiply-adds for one input.`,
    table("Every layer in the order of computation", ["layer", "kind", "output", "weights", "multiply-adds", "bytes", "sees", "time", "of peak", "kernel"], rows));
}

function aboutSamples() {
  if (record.data.missing) return [section("samples", "Samples", `Nothing is shown here: ${record.data.missing}.`)];
  const part = record.part;
  const made = [];
  if (record.mistakes) {
    const judged = record.mistakes;
    made.push(section("confusion", "Confusion", `${number(judged.count)} ${part} samples, ${percent(judged.accuracy, 2)} right.`, matrix(judged, names), pairs(judged, names)));
    if (judged.worst.length) made.push(section("worst", "Most wrong", "Wrong answers, the surest first.", worst(judged, names)));
    made.push(section("calibration", "How sure it is", `On average its confidence is off by ${percent(judged.calibration_error)}.`, calibration(judged.calibration)));
  }
  made.push(section("samples", "From inside", `Some ${part} samples, what each layer makes of them and what speaks for the answer.`, record.samples.map(sample)));
  made.push(section("field", "What a unit sees", "The middle unit of each convolution: the outer box is all it could see, the inner one holds 95 % of its gradient.", fields(record.field)));
  if (record.exciting) made.push(section("exciting", "What excites its units", `Of ${number(record.exciting.searched)} training samples those that a channel answers to most, its answer below, and the part it sees there.`, exciting(record.exciting)));
  made.push(section("data", "Data", `${record.data.source}: ` + Object.entries(record.split_sizes).map(([name, size]) => `${number(size)} ${name}`).join(", ") + ".",
    names.length <= 60 ? counts(record.class_counts, names) : null, settings("What was found in the data", record.report)));
  return made;
}

const main = document.getElementById("main");
const parts = [
  record.curves.length ? section("curves", "Curves", null, el("div", { class: "two" }, curves(record.curves))) : null,
  diagnosis(),
  ...aboutSamples(),
  section("filters", "Filters", "What each convolution looks for; named where it resembles a filter designed by hand.", record.filters.map((layer, place) => filters({ ...layer, open: place === 0 }))),
  layers(),
  section("made", "How it was made", null, settings("Recipe", record.recipe), settings("Preprocessing", record.preprocessing), settings("Training", record.training), settings("Environment", record.environment),
    record.test_evaluations.length ? table("Evaluations on the test part, all of them", ["date", "data", "samples", "accuracy", "loss"],
      record.test_evaluations.map((one) => [one.date, one.data, one.samples, percent(one.accuracy, 2), number(one.loss)])) : null),
].filter(Boolean);

const links = parts.map((part) => el("a", { href: "#" + part.id }, part.querySelector("h2").textContent));
document.getElementById("header").append(el("h1", {}, record.title), tiles(), el("nav", { "aria-label": "Sections" }, links));
main.append(...parts);
document.documentElement.dataset.ready = "true";
