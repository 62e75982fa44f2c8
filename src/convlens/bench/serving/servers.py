"""Our server beside LitServe and a plain FastAPI endpoint, asked for single pictures over many connections.

Every server is started once and answers in turn, round after round, under a load generator in a process of its own
(closed loop; it shares the cores with the server). Each answer must have the label of the model file's `predict`.
Reported: requests a second, p50 and p99 over the rounds, memory of all processes of a server, seconds from its
start to the first answer. The ratio of a round is ours over the better peer's in the same round. The plain
endpoint is also shown with a process a core, as a careful operator would run it; ours is always one process.
"""

from __future__ import annotations

import base64
import importlib.util
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from convlens import load, models
from convlens.bench.results import environment
from convlens.data import Preprocessing
from convlens.modelfile.card import ModelCard, write_model

GENERATOR = [sys.executable, "-m", "convlens.bench.serving.load"]
__all__ = ["NETS", "RAW", "Server", "document", "measure_serving", "pictures", "table", "written_model"]

NETS = {"lenet5": (1, 28, 10), "resnet18": (3, 224, 1000)}
PICTURES = 16
A_PROCESS_A_CORE = "fastapi, a process a core"
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
        """Where it predicts."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def start(self) -> None:
        """Until the first answer."""
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
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended before it answered") from None
                time.sleep(0.02)
        self.start_s = time.perf_counter() - started

    def ask(self, body: Path) -> dict[str, Any]:
        """One answer."""
        request = urllib.request.Request(self.url, body.read_bytes(), {"content-type": self.kind})
        with urllib.request.urlopen(request, timeout=30) as response:
            found: dict[str, Any] = json.loads(response.read())
        answer: dict[str, Any] = found["predictions"][0] if "predictions" in found else found
        return answer

    def round(self, connections: int, seconds: float) -> dict[str, Any]:
        """What the load generator found."""
        bodies = [word for body in self.bodies for word in ("--body", str(body))]
        numbers = ["--connections", str(connections), "--seconds", str(seconds), "--kind", self.kind]
        done = subprocess.run(
            [*GENERATOR, self.url, *bodies, *numbers],
            capture_output=True, text=True, timeout=seconds + 60, check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        return found

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
        """Ask it to end, then end it."""
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
    architecture: dict[str, Any] = {
        "name": name,
        "in_channels": channels,
        "num_classes": classes,
        "input_size": [side, side],
    }
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


def servers(path: Path, raw: list[Path], wrapped: list[Path]) -> list[Server]:
    """Ours, asked in two ways, and the peers that are installed."""
    ours, plain = ["-m", "convlens", "serve", str(path)], ["-m", "convlens.bench.serving.peers", str(path)]
    found = [
        Server("convlens", ours, "/v1/predict", RAW, raw),
        Server("convlens, base64", ours, "/v1/predict", BASE64, wrapped),
        Server("fastapi", plain, "/predict", RAW, raw),
        Server(A_PROCESS_A_CORE, [*plain, "--processes", str(os.cpu_count() or 1)], "/predict", RAW, raw),
    ]
    if importlib.util.find_spec("litserve"):
        peer = ["-m", "convlens.bench.serving.litserve_peer", str(path)]
        found.append(Server("litserve", peer, "/predict", BASE64, wrapped))
        found.append(Server("litserve, one thread", [*peer, "--threads", "1"], "/predict", BASE64, wrapped))
    return found


def checked(server: Server, labels: list[str]) -> None:
    """Stop where a server answers something else than the model does."""
    answers = [server.ask(body)["label"] for body in server.bodies]
    if answers != labels:
        raise RuntimeError(f"{server.name} answers {answers}, expected {labels}")


def measure_serving(
    name: str,
    *,
    rounds: int = 5,
    seconds: float = 3.0,
    warm_s: float = 1.0,
    connections: int = 64,
    done: Callable[[str, float], None] = lambda name, rate: None,
) -> dict[str, Any]:
    """Each server's figures, by its name.

    Args:
        name: one of `NETS`.
        rounds: of each server; they take turns, and another one begins each round.
        seconds: of load in a round.
        warm_s: seconds of load before the rounds.
        connections: that ask at the same time.
        done: called with a server and its requests a second after each round.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = written_model(name, folder)
        raw, wrapped = pictures(name, folder)
        labels = load(path).predict(raw).labels
        running = servers(path, raw, wrapped)
        try:
            for server in running:
                server.start()
                checked(server, labels)
                server.round(connections, warm_s)
            for number in range(rounds):
                for server in running[number % len(running) :] + running[: number % len(running)]:
                    server.rounds.append(server.round(connections, seconds))
                    server.memory.append(server.resident_bytes())
                    done(server.name, server.rounds[-1]["answered_per_s"])
        finally:
            for server in running:
                server.stop()
    return summary(running)


def summary(running: list[Server]) -> dict[str, Any]:
    """What the rounds come to."""
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
    ours = [server for server in running if server.name.startswith("convlens")]
    several = [server for server in running if server.name == A_PROCESS_A_CORE]
    single = [server for server in running if server not in ours and server not in several]
    for server in ours:
        for name, peers in (("ratio_to_best_peer", single), ("ratio_to_a_process_a_core", several)):
            if peers:
                found[server.name][name] = ratio(server, peers)
    return found


def ratio(ours: Server, peers: list[Server]) -> dict[str, float]:
    """Requests a second over those of the best peer of the same round."""
    ratios = [
        found["answered_per_s"] / max(peer.rounds[number]["answered_per_s"] for peer in peers)
        for number, found in enumerate(ours.rounds)
    ]
    return quartiles(ratios)


def quartiles(values: list[float]) -> dict[str, float]:
    """Of some rounds."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"lower": round(low, 3), "median": round(middle, 3), "upper": round(high, 3), "n": len(values)}


def document(results: dict[str, dict[str, Any]], connections: int) -> dict[str, Any]:
    """Everything about a run, as plain values."""
    return {"benchmark": "serving", "environment": environment(), "connections": connections} | {
        name: {"servers": found} for name, found in results.items()
    }


def table(results: dict[str, dict[str, Any]]) -> Table:
    """The servers as a Rich table."""
    shown = Table(title="single pictures, closed loop; ratio to the best peer of the same round")
    shown.add_column("network")
    shown.add_column("server")
    for column in ("requests/s", "p50 ms", "p99 ms", "MiB", "first answer s", "ratio"):
        shown.add_column(column, justify="right")
    for name, found in results.items():
        for server, row in found.items():
            rate, ratio = row["requests_per_s"], row.get("ratio_to_best_peer")
            shown.add_row(
                name, server, f"{rate['median']:,.0f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}",
                f"{row['memory_mib']:.0f}", f"{row['first_answer_s']:.1f}",
                f"{ratio['median']:.2f} ({ratio['lower']:.2f}–{ratio['upper']:.2f})" if ratio else "",
            )  # fmt: skip
    return shown
