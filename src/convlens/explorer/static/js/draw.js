// A pad to draw on with mouse, pen or finger; hands over a PNG, white on black as handwriting sets are.

import { el } from "./dom.js";

export function drawPad(ondrawn) {
  const canvas = el("canvas", { width: 224, height: 224, class: "pad", role: "img", "aria-label": "Drawing pad" });
  const context = canvas.getContext("2d");
  const clear = () => { context.fillStyle = "black"; context.fillRect(0, 0, canvas.width, canvas.height); };
  clear();
  Object.assign(context, { strokeStyle: "white", lineWidth: 18, lineCap: "round", lineJoin: "round" });
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    context.beginPath();
    context.moveTo(...place(event));
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    context.lineTo(...place(event));
    context.stroke();
  });
  canvas.addEventListener("pointerup", () => canvas.toBlob((blob) => ondrawn(blob)));
  return el("div", { class: "drawing" }, canvas, el("button", { type: "button", onclick: clear }, "clear"));
}
