// Arrays as pictures: quantised records onto a canvas, pixel for pixel, in colours that read in print and by the colour-blind.

import { el } from "./dom.js";

// eight points of viridis (CC0, by van der Walt and Smith); the scale in between is linear
const SEQUENTIAL = [[68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 194, 109], [159, 218, 58], [253, 231, 37]];
const NEGATIVE = [33, 102, 172];
const POSITIVE = [178, 24, 43];
const NEUTRAL = [247, 247, 247];

export function levels(record) {
  const text = atob(record.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function mix(a, b, t) {
  return [0, 1, 2].map((i) => Math.round(a[i] + (b[i] - a[i]) * t));
}

export function sequential(t) {
  const place = Math.min(0.999999, Math.max(0, t)) * (SEQUENTIAL.length - 1);
  return mix(SEQUENTIAL[Math.floor(place)], SEQUENTIAL[Math.floor(place) + 1], place % 1);
}

export function diverging(t) {
  return t < 0 ? mix(NEUTRAL, NEGATIVE, Math.min(1, -t)) : mix(NEUTRAL, POSITIVE, Math.min(1, t));
}

export function grey(t) {
  const level = Math.round(255 * t);
  return [level, level, level];
}

// values: numbers in rows; colour: number → [r, g, b]; alpha: number → 0..1
export function raster(width, height, colour, label, alpha) {
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = colour(i);
    pixels.data.set([r, g, b, alpha ? Math.round(255 * alpha(i)) : 255], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// one plane of a quantised record [planes, height, width] or [height, width]
export function plane(record, index, label, style = "sequential") {
  const [height, width] = record.shape.slice(-2);
  const all = levels(record);
  const start = index * height * width;
  const value = (i) => record.low + ((record.high - record.low) * all[start + i]) / 255;
  if (style === "diverging") {
    const most = Math.max(Math.abs(record.low), Math.abs(record.high)) || 1;
    return raster(width, height, (i) => diverging(value(i) / most), label);
  }
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < width * height; i++) {
    low = Math.min(low, all[start + i]);
    high = Math.max(high, all[start + i]);
  }
  const scale = high > low ? 1 / (high - low) : 0;
  const colour = style === "grey" ? grey : sequential;
  return raster(width, height, (i) => colour((all[start + i] - low) * scale), label);
}

// one row of a quantised record [rows, 1, width] as a curve
export function curvePlane(record, index, label) {
  const width = record.shape[record.shape.length - 1];
  const all = levels(record).subarray(index * width, (index + 1) * width);
  return curve([Array.from(all, (level) => record.low + ((record.high - record.low) * level) / 255)], label);
}

// three planes from ``index`` on as red, green and blue
export function colourPlane(record, index, label) {
  const [height, width] = record.shape.slice(-2);
  const all = levels(record);
  const size = height * width;
  const start = index * 3 * size;
  return raster(width, height, (i) => [all[start + i], all[start + size + i], all[start + 2 * size + i]], label);
}

// a picture record (see payload.thumbnail) as an element
export function picture(record, label) {
  if (record.kind === "picture") {
    return el("img", { src: record.uri, width: record.width, height: record.height, alt: label, class: "pixels" });
  }
  return curve(record.values, label);
}

function curve(channels, label) {
  const width = 256, height = 96;
  const canvas = el("canvas", { width, height, role: "img", "aria-label": label, class: "curve" });
  const context = canvas.getContext("2d");
  const flat = channels.flat();
  const low = Math.min(...flat), high = Math.max(...flat);
  channels.forEach((values, channel) => {
    context.strokeStyle = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"][channel % 4];
    context.beginPath();
    values.forEach((value, i) => {
      const x = (i / Math.max(1, values.length - 1)) * (width - 4) + 2;
      const y = height - 3 - ((value - low) / (high - low || 1)) * (height - 6);
      if (i === 0) context.moveTo(x, y);
      else context.lineTo(x, y);
    });
    context.stroke();
  });
  return canvas;
}

// a heat map laid over a picture; strong places show, weak ones let the picture through
export function overlay(record, heat, label, boxes = []) {
  const [height, width] = heat.shape.slice(-2);
  const all = levels(heat);
  const most = Math.max(Math.abs(heat.low), Math.abs(heat.high)) || 1;
  const strength = (i) => Math.abs(heat.low + ((heat.high - heat.low) * all[i]) / 255) / most;
  const over = raster(width, height, (i) => sequential(strength(i)), label, (i) => 0.75 * Math.sqrt(strength(i)));
  over.classList.add("over");
  const frames = boxes.map(({ box, title, kind }) => {
    const [[top, bottom], [left, right]] = box.length === 1 ? [[0, height], box[0]] : box.slice(-2);
    const style = `top:${(100 * top) / height}%;height:${(100 * (bottom - top)) / height}%;left:${(100 * left) / width}%;width:${(100 * (right - left)) / width}%`;
    return el("span", { class: "box " + kind, style, title });
  });
  return el("div", { class: "stack" }, picture(record, label), over, frames);
}
