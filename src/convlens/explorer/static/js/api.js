// Requests to the server that this page came from; a newer request of a kind cancels the older one.

const token = new URLSearchParams(location.search).get("token") ?? "";
const running = new Map();
const waiting = new Set();

function show() {
  document.getElementById("status").textContent = waiting.size ? "computing…" : "";
}

export async function ask(kind, path, { body, raw, query } = {}) {
  running.get(kind)?.abort();
  const stop = new AbortController();
  running.set(kind, stop);
  const mark = {};
  // a quick answer needs no notice
  const timer = setTimeout(() => { waiting.add(mark); show(); }, 150);
  try {
    const address = path + (query ? "?" + new URLSearchParams(query) : "");
    const headers = { "X-Convlens-Token": token };
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(address, { method: body || raw ? "POST" : "GET", headers, body: body ? JSON.stringify(body) : raw, signal: stop.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error ?? JSON.stringify(answer.detail));
    return answer;
  } finally {
    clearTimeout(timer);
    waiting.delete(mark);
    show();
  }
}

// what a request says when it fails, where the reader looks; cancelled ones say nothing
export function tell(place, error) {
  if (error.name === "AbortError") return;
  place.replaceChildren(Object.assign(document.createElement("p"), { className: "error", textContent: error.message }));
}
