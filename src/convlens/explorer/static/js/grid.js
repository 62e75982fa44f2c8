// A map that can be pointed at: hovering or moving with the arrow keys chooses a place, click or Enter opens it.

import { el } from "./dom.js";

export function pointed(canvas, { label, step = 1, height = canvas.height, width = canvas.width, onpoint, onopen }) {
  const mark = el("span", { class: "cursor", hidden: true });
  const holder = el("div", { class: "stack map", tabindex: "0", role: "application", "aria-label": label + ". Arrow keys move, Enter takes the number apart." }, canvas, mark);
  let row = Math.floor(height / 2), column = Math.floor(width / 2);
  const choose = (r, c) => {
    row = Math.max(0, Math.min(height - 1, r));
    column = Math.max(0, Math.min(width - 1, c));
    mark.hidden = false;
    mark.style.cssText = `top:${(100 * row) / height}%;left:${(100 * column) / width}%;width:${100 / width}%;height:${100 / height}%`;
    onpoint?.(row * step, column * step);
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width)];
  };
  let last = "";
  holder.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (String(at) !== last) choose(...at);
    last = String(at);
  });
  holder.addEventListener("click", (event) => { choose(...place(event)); onopen?.(row * step, column * step); });
  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  holder.addEventListener("keydown", (event) => {
    if (keys[event.key]) choose(row + keys[event.key][0], column + keys[event.key][1]);
    else if (event.key === "Enter" || event.key === " ") onopen?.(row * step, column * step);
    else return;
    event.preventDefault();
  });
  return holder;
}
