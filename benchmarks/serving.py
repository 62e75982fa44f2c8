"""`convlens serve` beside LitServe and a plain FastAPI endpoint: ``python benchmarks/serving.py [--out FILE]``.

Every server is started once and answers in turn, round after round, single pictures over 64 connections from a
load generator in a process of its own (closed loop; it shares the cores with the server). Every answer must have
the label that `convlens.load(...).predict` gives. Reported: requests a second, p50 and p99 over the rounds, memory
of all processes of a server, seconds from the start of the process to the first answer. The ratio of a round is
ours over the better peer's in the same round.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convlens import load, models
from convlens.bench.results import environment
from convlens.data import Preprocessing
from convlens.modelfile.card import ModelCard, write_model

HERE = Path(__file__).parent
NETS = {"lenet5": (1, 28, 10), "resnet18": (3, 224, 1000)}
PICTURES = 16
RAW, BASE64 = "application/octet-stream", "application/json"


@dataclass
class Server:
    """One server process, its requests and its rounds."""

    name: str
    command: list[str]
    path: str
    kind: str
    bodies: list[Path]
    port: int = 0
    process: Any = None
    start_s: float = 0.0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *self.command, "--port", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while True:
            try:
                self.ask(self.bodies[0])
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, f"{self.name} ended"
                time.sleep(0.02)
        self.start_s = time.perf_counter() - started

    def ask(self, body: Path) -> dict[str, Any]:
        request = urllib.request.Request(self.url, body.read_bytes(), {"content-type": self.kind})
        with urllib.request.urlopen(request, timeout=30) as response:
            found: dict[str, Any] = json.loads(response.read())
        return found["predictions"][0] if "predictions" in found else found

    def round(self, connections: int, seconds: float) -> dict[str, Any]:
        bodies = [word for body in self.bodies for word in ("--body", str(body))]
        numbers = ["--connections", str(connections), "--seconds", str(seconds), "--kind", self.kind]
        done = subprocess.run(
            [sys.executable, HERE / "load.py", self.url, *bodies, *numbers],
            capture_output=True, text=True, timeout=seconds + 60, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    def resident_bytes(self) -> int:
        """Proportional set size of the process and everything below it."""
        total, group = 0, os.getpgid(self.process.pid)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == group:
                    lines = (folder / "smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
            except (OSError, ValueError):
                continue
        return total

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def written_model(name: str, folder: Path) -> Path:
    """An untrained net with its card; what it answers does not matter, only that all answer alike."""
    channels, side, classes = NETS[name]
    torch.manual_seed(0)
    architecture = {"name": name, "in_channels": channels, "num_classes": classes, "input_size": [side, side]}
    form = Preprocessing(
        kind="image", channels=channels, size=(side, side), mean=(120.0,) * channels, std=(60.0,) * channels
    )
    card = ModelCard(
        architecture=architecture, preprocessing=form, class_names=tuple(f"class {n}" for n in range(classes))
    )
    path = folder / f"{name}.safetensors"
    write_model(path, models.create(**architecture).state_dict(), card)
    return path


def pictures(name: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The same pictures as files and as base64 in JSON: grey PNG or colour JPEG of the net's size."""
    channels, side, _ = NETS[name]
    random = np.random.default_rng(0)
    raw, wrapped = [], []
    for number in range(PICTURES):
        rough = random.integers(0, 256, (8, 8) if channels == 1 else (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)
        written = io.BytesIO()
        picture.save(written, "PNG" if channels == 1 else "JPEG", **({} if channels == 1 else {"quality": 90}))
        raw.append(folder / f"{name}-{number}.bin")
        raw[-1].write_bytes(written.getvalue())
        text = base64.b64encode(written.getvalue()).decode()
        wrapped.append(folder / f"{name}-{number}.json")
        wrapped[-1].write_text(json.dumps({"images": [text], "image": text}))
    return raw, wrapped


def servers(path: Path, raw: list[Path], wrapped: list[Path], only: list[str]) -> list[Server]:
    peers = str(HERE / "serving_peers.py")
    found = [
        Server("convlens", ["-m", "convlens", "serve", str(path)], "/v1/predict", RAW, raw),
        Server("convlens, base64", ["-m", "convlens", "serve", str(path)], "/v1/predict", BASE64, wrapped),
        Server("fastapi", [peers, "fastapi", str(path)], "/predict", RAW, raw),
        Server("litserve", [peers, "litserve", str(path)], "/predict", BASE64, wrapped),
        Server(
            "litserve, one thread", [peers, "litserve", str(path), "--threads", "1"], "/predict", BASE64, wrapped
        ),
    ]
    return [one for one in found if not only or one.name in only]


def checked(server: Server, labels: list[str]) -> None:
    answers = [server.ask(body)["label"] for body in server.bodies]
    assert answers == labels, f"{server.name} answers {answers}, expected {labels}"


def measured(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = written_model(name, folder)
        raw, wrapped = pictures(name, folder)
        labels = load(path).predict(raw).labels
        running = servers(path, raw, wrapped, chosen.only)
        try:
            for server in running:
                server.start()
                print(f"{server.name} answers after {server.start_s:.1f} s", file=sys.stderr, flush=True)
                checked(server, labels)
                server.round(chosen.connections, chosen.warm)
            for number in range(chosen.rounds):
                for server in running[number % len(running) :] + running[: number % len(running)]:
                    server.rounds.append(server.round(chosen.connections, chosen.seconds))
                    server.memory.append(server.resident_bytes())
                    print(server.name, server.rounds[-1]["answered_per_s"], file=sys.stderr, flush=True)
        except SystemExit:
            print("ended from outside: only whole rounds count", file=sys.stderr, flush=True)
        finally:
            for server in running:
                server.stop()
    whole = min(len(server.memory) for server in running)
    for server in running:
        del server.rounds[whole:], server.memory[whole:]
    return summary(running)


def summary(running: list[Server]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for server in running:
        rates = [one["answered_per_s"] for one in server.rounds]
        latency = [one["latency"]["200"] for one in server.rounds]
        found[server.name] = {
            "requests_per_s": quartiles(rates),
            "p50_ms": statistics.median(one["p50_ms"] for one in latency),
            "p99_ms": statistics.median(one["p99_ms"] for one in latency),
            "memory_mib": round(max(server.memory) / 2**20, 1),
            "first_answer_s": round(server.start_s, 2),
            "generator_cpu_share": statistics.median(one["generator_cpu_share"] for one in server.rounds),
            "not_200": sum(n for one in server.rounds for status, n in one["statuses"].items() if status != "200"),
            "lost": sum(sum(one["lost"].values()) for one in server.rounds),
        }
    peers = [server for server in running if not server.name.startswith("convlens")]
    for server in running:
        if server not in peers and peers:
            ratios = [
                ours["answered_per_s"] / max(peer.rounds[number]["answered_per_s"] for peer in peers)
                for number, ours in enumerate(server.rounds)
            ]
            found[server.name]["ratio_to_best_peer"] = quartiles(ratios)
    return found


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"lower": round(low, 3), "median": round(middle, 3), "upper": round(high, 3), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", action="append", choices=sorted(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--warm", type=float, default=1.0, help="seconds of load before the rounds")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", action="append", default=[])
    chosen = parser.parse_args()
    # ended from outside, the servers must not stay behind
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result: dict[str, Any] = {"benchmark": "serving"}
    if chosen.out and chosen.out.exists():
        result |= json.loads(chosen.out.read_text(encoding="utf-8"))
    result |= {"environment": environment(), "connections": chosen.connections}
    for name in chosen.model or sorted(NETS):
        result[name] = {"seconds": chosen.seconds, "servers": measured(name, chosen)}
        print(json.dumps({name: result[name]}, indent=1), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
