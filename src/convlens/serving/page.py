"""The page to try the server on: choose or drop pictures, see the answers. Nothing from elsewhere."""

from __future__ import annotations

__all__ = ["PAGE", "SCRIPT"]

SCRIPT = """
const files = document.getElementById("files"), token = document.getElementById("token"), list = document.getElementById("answers");
async function ask(file) {
  const item = document.createElement("li"), picture = document.createElement("img"), text = document.createElement("span");
  picture.src = URL.createObjectURL(file);
  picture.alt = file.name;
  text.textContent = " …";
  item.append(picture, text);
  list.prepend(item);
  const headers = { "Content-Type": "application/octet-stream" };
  if (token.value) headers.Authorization = "Bearer " + token.value;
  try {
    const response = await fetch("v1/predict", { method: "POST", body: file, headers });
    const answer = await response.json();
    text.textContent = " " + (response.ok ? answer.predictions[0].top.map((one) => one.label + " " + (100 * one.probability).toFixed(1) + " %").join(", ") : answer.error.message);
  } catch (error) { text.textContent = " " + error; }
}
files.addEventListener("change", () => [...files.files].forEach(ask));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); [...event.dataTransfer.files].forEach(ask); });
"""

PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>convlens server</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ width: 4rem; height: 4rem; object-fit: contain; vertical-align: middle; image-rendering: pixelated; }}
li {{ list-style: none; margin: .5rem 0; }} ul {{ padding: 0; }}
label {{ display: block; margin: .6rem 0; }}
</style></head><body>
<h1>Try it</h1>
<label>Pictures: choose some, or drop them anywhere <input id="files" type="file" accept="image/*" multiple></label>
<label>Token, if the server asks for one <input id="token" type="password" autocomplete="off"></label>
<ul id="answers" aria-live="polite"></ul>
<p><a href="openapi.json">OpenAPI</a> · <a href="v1/models">models</a> · <a href="metrics">metrics</a></p>
<script>{SCRIPT}</script></body></html>
"""
