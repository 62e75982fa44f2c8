"""How soon the explorer answers: ``python benchmarks/explorer.py [--out benchmarks/results/explorer.json]``.

Requests of the pages for LeNet-5 on digits, through the whole server, in turns; the goal is 100 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastapi.testclient import TestClient

import convlens
from convlens.bench.results import environment
from convlens.explain import learned_filters, opened
from convlens.explorer.server import create_app
from convlens.explorer.session import Session
from convlens.explorer.subject import Subject

HOST = "127.0.0.1:9"
HEADERS = {"host": HOST, "x-convlens-token": "t"}


def lenet() -> tuple[Subject, int]:
    torch.manual_seed(0)
    digits = convlens.data.open("digits")
    net = convlens.models.create("lenet5", in_channels=1, num_classes=10, input_size=(32, 32)).eval()
    return Subject("lenet5", opened(net), digits.preprocessing, digits.class_names, digits), 10


def requests(client: TestClient, subject: Subject) -> dict[str, Callable[[], Any]]:
    layers = list(learned_filters(subject.model))
    name = layers[1]
    place = f"name={name}&channel=1&position=4,4"

    def get(path: str) -> Callable[[], Any]:
        return lambda: client.get(path, headers=HEADERS)

    found = {
        "layer": get(f"/api/layer?name={name}"),
        "filters": get(f"/api/filters?name={name}"),
        "point": get(f"/api/point?{place}"),
        "number": get(f"/api/pixel?{place}"),
        "backward": get(f"/api/backward?{place}"),
        "change": lambda: client.post(
            "/api/change", headers=HEADERS, json={"name": name, "channel": 1, "dilation": [2, 2]}
        ),
        "why": get("/api/evidence"),
    }
    if subject.data is not None:
        found["another sample"] = lambda: client.post("/api/sample/3", headers=HEADERS)
        found["excited by"] = get(f"/api/excited?name={name}&channel=1")
    return found


def measured(make: Callable[[], tuple[Subject, int]]) -> list[dict[str, Any]]:
    subject, repeats = make()
    client = TestClient(create_app(Session(subject), "t", {HOST}))
    asked = requests(client, subject)
    times: dict[str, list[float]] = {key: [] for key in asked}
    for turn in range(repeats + 1):
        for key, run in asked.items():
            start = time.perf_counter()
            answer = run()
            if turn:  # the first of each kind imports and plans
                times[key].append((time.perf_counter() - start) * 1e3)
            if answer.status_code != 200:
                raise SystemExit(f"{key}: {answer.text}")
    rows = []
    for key, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows.append(
            {
                "net": subject.title,
                "request": key,
                "median_ms": round(middle, 2),
                "quartiles_ms": [round(low, 2), round(high, 2)],
                "longest_ms": round(max(values), 2),
                "repeats": len(values),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    choices = parser.parse_args()
    rows = measured(lenet)
    for row in rows:
        print(row)
    if choices.out:
        record = {"benchmark": "explorer", "environment": environment(), "rows": rows}
        choices.out.parent.mkdir(parents=True, exist_ok=True)
        choices.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
