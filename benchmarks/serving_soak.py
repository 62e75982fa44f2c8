"""`convlens serve` for long, beyond its capacity, and ended under load: ``python benchmarks/serving_soak.py``.

* ``soak``: 80 % of the capacity that a closed loop finds, for ``--minutes``; errors, latency, memory every 5 s.
* ``overload``: 200 % of the capacity over 2,048 connections; every answer must be 200 or 429, and the 99th
  percentile of the answered within the budget (two seconds), counted from when a request was due.
* ``sigterm``: ``--kills`` times a fresh server is told to end while 32 connections ask; each request that was sent
  must be answered, and the process must end with 0.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from convlens.bench.results import environment
from convlens.bench.serving.servers import GENERATOR, RAW, Server, pictures, written_model

BUDGET_S = 2.0


def load(server: Server, seconds: float, connections: int, rate: float | None = None) -> dict[str, Any]:
    command = [*GENERATOR, server.url, "--body", str(server.bodies[0])]
    command += ["--seconds", str(seconds), "--connections", str(connections)]
    command += ["--rate", str(rate)] if rate else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    del found["sample"]
    return found


def soak(server: Server, minutes: float, share: float) -> dict[str, Any]:
    capacity = load(server, 4, 64)["answered_per_s"]
    memory: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(5):
            memory.append(server.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = load(server, 60 * minutes, 64, share * capacity)
    finally:
        over.set()
        watcher.join()
    quarter = max(1, len(memory) // 4)
    middle = sorted(memory[quarter : 2 * quarter])[quarter // 2] if len(memory) > 3 else 0
    end = sorted(memory[-quarter:])[quarter // 2] if memory else 0
    return {
        "capacity_per_s": capacity,
        "asked_per_s": share * capacity,
        **found,
        "memory_mib": [round(size / 2**20, 1) for size in memory],
        "growth_mib_from_second_to_last_quarter": round((end - middle) / 2**20, 2),
    }


def overload(server: Server, seconds: float) -> dict[str, Any]:
    capacity = load(server, 4, 64)["answered_per_s"]
    before = server.resident_bytes()
    found = load(server, seconds, 2048, 2 * capacity)
    grown = (server.resident_bytes() - before) / 2**20
    held = set(found["statuses"]) <= {"200", "429"} and not found["lost"]
    held = held and found["latency"]["200"]["p99_ms"] <= 1e3 * BUDGET_S
    return {"capacity_per_s": capacity, "held": held, **found, "memory_growth_mib": grown}


def sigterm(fresh: Any, kills: int) -> dict[str, Any]:
    total: dict[str, Any] = {"kills": kills, "answered": 0, "lost": {}, "statuses": {}, "exits": {}, "seconds": []}
    for number in range(kills):
        server = fresh()
        server.start()
        command = [*GENERATOR, server.url, "--body", str(server.bodies[0])]
        command += ["--seconds", "2.5", "--connections", "32"]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.8 + 0.013 * number)
        started = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(30)
        total["seconds"].append(round(time.perf_counter() - started, 2))
        found = json.loads(asking.communicate(timeout=60)[0])
        total["exits"][code] = total["exits"].get(code, 0) + 1
        for kind in ("lost", "statuses"):
            for name, count in found[kind].items():
                total[kind][name] = total[kind].get(name, 0) + count
        total["answered"] += found["statuses"].get("200", 0)
    # after the end nobody listens: that is no loss
    total["refused_afterwards"] = total["lost"].pop("refused a connection", 0)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=["soak", "overload", "sigterm"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=15, help="of overload")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    # ended from outside, the servers must not stay behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result: dict[str, Any] = {"benchmark": "serving_soak"}
    if chosen.out and chosen.out.exists():
        result |= json.loads(chosen.out.read_text(encoding="utf-8"))
    place_of = result.setdefault(chosen.model, {})
    machine = environment()
    with tempfile.TemporaryDirectory() as place:
        path = written_model(chosen.model, Path(place))
        raw, _ = pictures(chosen.model, Path(place))

        def fresh() -> Server:
            return Server("convlens", ["-m", "convlens", "serve", str(path)], "/v1/predict", RAW, raw)

        for what in chosen.what:
            if what == "sigterm":
                found = sigterm(fresh, chosen.kills)
            else:
                server = fresh()
                server.start()
                try:
                    found = (
                        soak(server, chosen.minutes, chosen.share)
                        if what == "soak"
                        else overload(server, chosen.seconds)
                    )
                finally:
                    server.stop()
            place_of[what] = {"environment": machine, **found}
            print(what, json.dumps({k: v for k, v in found.items() if k != "memory_mib"}), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
