// Requests to the server that this page came from; a newer request of a kind cancels the older one.

const token = new URLSearchParams(location.search).get("token") ?? "";
const running = new Map();
const waiting = new Set();
let watch = null;
let order = Date.now() * 1000; // microseconds, one more for each request

async function request(path, options = {}) {
  return fetch(path, { ...options, headers: { "X-Convlens-Token": token, "X-Convlens-Order": ++order, ...options.headers } });
}

function show(text) {
  document.getElementById("doing").textContent = text;
  document.getElementById("stop").hidden = !text;
}

// while something takes long: what it is doing, how far it is, and a way to stop it
async function follow() {
  try {
    const now = await (await request("api/progress")).json();
    if (!waiting.size) return;
    const part = now.total ? `, ${now.done} of ${now.total}` : "";
    show(now.kind ? `computing ${now.layer}${part} (${now.seconds} s)` : "computing…");
  } catch {
    show("computing…");
  }
}

function settle() {
  if (waiting.size && watch === null) {
    show("computing…");
    watch = setInterval(follow, 400);
  } else if (!waiting.size) {
    clearInterval(watch);
    watch = null;
    show("");
  }
}

export async function ask(kind, path, { body, raw, query } = {}) {
  running.get(kind)?.abort();
  const stop = new AbortController();
  running.set(kind, stop);
  const mark = {};
  // a quick answer needs no notice
  const timer = setTimeout(() => { waiting.add(mark); settle(); }, 200);
  try {
    const address = path + (query ? "?" + new URLSearchParams(query) : "");
    const headers = body ? { "Content-Type": "application/json" } : {};
    const response = await request(address, { method: body || raw !== undefined ? "POST" : "GET", headers, body: body ? JSON.stringify(body) : raw, signal: stop.signal });
    const answer = await response.json();
    if (answer?.overtaken) throw new DOMException("overtaken", "AbortError");
    if (!response.ok) throw new Error(answer.error ?? JSON.stringify(answer.detail));
    return answer;
  } finally {
    clearTimeout(timer);
    waiting.delete(mark);
    settle();
  }
}

export function stopAll() {
  for (const one of running.values()) one.abort();
  return request("api/stop", { method: "POST" });
}

// what a request says when it fails, where the reader looks; cancelled ones say nothing
export function tell(place, error) {
  if (error.name === "AbortError") return;
  place.replaceChildren(Object.assign(document.createElement("p"), { className: "error", textContent: error.message }));
}
