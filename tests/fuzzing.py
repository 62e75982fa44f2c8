"""Hostile inputs by the hundred thousand: ``PYTHONPATH=src python tests/fuzzing.py [--count 20000] [--seed 0]``.

Every input is made from a good one by a generator that is seeded with (seed, target, number), so any of them can
be made again: ``--target image --only 123``. An input passes if it is answered or refused by one of our own errors
(a request: by a status below 500) within `LONGEST_S`; the memory of the process may not grow with their number.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import hashlib
import io
import json
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from convlens import models
from convlens.data import Preprocessing
from convlens.data.formats.idx import read_idx
from convlens.data.tables import read_table
from convlens.errors import ConvlensError
from convlens.modelfile import load
from convlens.modelfile.card import FORMAT_VERSION, KIND, ModelCard
from convlens.modelfile.container import write_container
from convlens.training.recipe import read_recipe

LONGEST_S = 5.0
ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
ODD_TEXTS = (
    b"../../etc/passwd", b"\0", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b'"', b"\\", b"{", b"[" * 60,
    b"null", b"\xff\xfe", b"\xef\xbb\xbf", "é".encode(), b"__proto__", b"%s%n", b"\r\n\r\n", b"=", b",", b"true",
)  # fmt: skip
Generator = random.Random


class Wrong(Exception):
    """An input got what no input may get."""


def mutated(draw: Generator, good: bytes) -> bytes:
    """A few random changes: bits, bytes, numbers, texts, cuts, doublings, pieces moved."""
    bad = bytearray(good)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        place = draw.randrange(len(bad) + 1)
        way = draw.randrange(8)
        if way == 0 and bad:
            bad[min(place, len(bad) - 1)] ^= 1 << draw.randrange(8)
        elif way == 1:
            bad[place : place + draw.randrange(1, 9)] = draw.randbytes(draw.randrange(9))
        elif way == 2:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(ODD_NUMBERS) & (256**size - 1)
            bad[place : place + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif way == 3:
            bad[place:place] = draw.choice(ODD_TEXTS)
        elif way == 4:
            del bad[place:]
        elif way == 5:
            del bad[place : place + draw.randrange(1, 64)]
        elif way == 6:
            piece = bad[place : place + draw.randrange(1, 128)]
            bad[place:place] = piece * draw.choice((1, 1, 2, 20))
        else:
            other = draw.randrange(len(bad) + 1)
            bad[other:other] = bad[place : place + draw.randrange(1, 64)]
    return bytes(bad[: 1 << 20])


class Corpus:
    """Good inputs to begin with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "input"
        architecture = {"name": "lenet5", "in_channels": 1, "num_classes": 2, "input_size": [16, 16]}
        torch.manual_seed(0)
        self.net = models.create(**architecture).state_dict()
        self.card = ModelCard(
            architecture=architecture,
            preprocessing=Preprocessing(kind="image", channels=1, size=(16, 16)),
            class_names=("a", "b"),
        ).model_dump(mode="json")
        self.model = folder / "model.safetensors"
        write_container(self.model, KIND, FORMAT_VERSION, self.net, self.card)
        self.model_bytes = self.model.read_bytes()
        self.pictures = list(_pictures())
        labels = b"\0\0\x08\x01" + struct.pack(">I", 6) + bytes(range(6))
        images = b"\0\0\x08\x03" + struct.pack(">III", 3, 4, 5) + bytes(60)
        self.idx = [labels, images, gzip.compress(images, 1), b"\0\0\x0d\x01" + struct.pack(">If", 1, 2.0)]
        rows = "\n".join(f"a/{n}.png,{'cat' if n % 2 else 'dog'},train" for n in range(6))
        self.tables = [
            f"path,label,split\n{rows}\n".encode(), b"1\t0.5\t0.25\n2\t1.5\t-0.25\n", b"name;class\nx;1\ny;2\n",
        ]  # fmt: skip
        recipe = (
            'data = "digits"\nmodel = "lenet5"\nepochs = 3\nlearning_rate = 0.1\noptimizer = "sgd"\nseed = 1\n'
        )
        self.recipes = [recipe.encode(), (recipe + "[data_options]\nsize = [32, 32]\n[model_options]\n").encode()]


def _pictures() -> Any:
    draw = np.random.default_rng(0)
    grey = Image.fromarray(draw.integers(0, 256, (20, 24), dtype=np.uint8))
    colour = Image.fromarray(draw.integers(0, 256, (18, 16, 3), dtype=np.uint8))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 2000, zip=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "y" * 5000
    ways: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (grey, "PNG", {}),
        (grey.convert("P"), "PNG", {"transparency": 0, "pnginfo": notes, "icc_profile": b"icc" * 50}),
        (grey.convert("I;16"), "PNG", {}),
        (colour.convert("RGBA"), "PNG", {"interlace": 1}),
        (colour, "JPEG", {"exif": exif, "icc_profile": b"icc" * 50}),
        (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        (colour, "WEBP", {"exif": exif}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (grey, "TIFF", {}),
        (colour, "BMP", {}),
        (colour, "PPM", {}),
        (grey, "GIF", {"save_all": True, "append_images": [grey.rotate(90), grey], "duration": 10}),
        (colour, "ICO", {}),
        (colour, "TGA", {}),
    ]
    for picture, kind, options in ways:
        written = io.BytesIO()
        picture.save(written, kind, **options)
        yield written.getvalue()


def fuzz_model(corpus: Corpus, draw: Generator) -> None:
    """Bytes changed anywhere; or the header or the record changed, and the checksum made right again."""
    way = draw.randrange(3)
    content = corpus.model_bytes
    length = int.from_bytes(content[:8], "little")
    if way == 0:
        corpus.file.write_bytes(mutated(draw, content))
    elif way == 1:
        header = mutated(draw, content[8 : 8 + length])
        said = length if draw.random() < 0.2 else len(header)
        corpus.file.write_bytes(_signed(said.to_bytes(8, "little") + header + content[8 + length :]))
    else:
        record = mutated(draw, json.dumps(corpus.card).encode())
        table = json.loads(content[8 : 8 + length])
        table["__metadata__"]["record"] = record.decode("utf-8", "replace")
        header = json.dumps(table, separators=(",", ":")).encode()
        corpus.file.write_bytes(_signed(len(header).to_bytes(8, "little") + header + content[8 + length :]))
    predictor = load(corpus.file)
    predictor.predict(np.zeros((16, 16), np.uint8))


def _signed(content: bytes) -> bytes:
    mark = content.find(b'"checksum":"')
    if mark < 0:
        return content
    place = mark + len(b'"checksum":"')
    blank = content[:place] + b"0" * 64 + content[place + 64 :]
    return blank[:place] + hashlib.sha256(blank).hexdigest().encode() + blank[place + 64 :]


def fuzz_idx(corpus: Corpus, draw: Generator) -> None:
    corpus.file.write_bytes(mutated(draw, draw.choice(corpus.idx)))
    read_idx(corpus.file)


def fuzz_manifest(corpus: Corpus, draw: Generator) -> None:
    table = corpus.file.with_suffix(".csv")
    table.write_bytes(mutated(draw, draw.choice(corpus.tables)))
    read_table(table)


def fuzz_recipe(corpus: Corpus, draw: Generator) -> None:
    recipe = corpus.file.with_suffix(".toml")
    recipe.write_bytes(mutated(draw, draw.choice(corpus.recipes)))
    read_recipe(recipe)


FORMS = [
    Preprocessing(kind="image", channels=channels, size=(12, 10), fit=fit)
    for channels in (1, 3)
    for fit in ("crop", "pad", "stretch")
]


def fuzz_image(corpus: Corpus, draw: Generator) -> None:
    form = draw.choice(FORMS)
    found = form.decode(mutated(draw, draw.choice(corpus.pictures)))
    if found.shape != form.shape or found.dtype != np.uint8:
        raise Wrong(f"decoded to {found.dtype} {found.shape}")


class Asked:
    """The application, asked without a network."""

    def __init__(self, corpus: Corpus) -> None:
        from convlens.serving.application import create_app
        from convlens.serving.served import ServedModel
        from convlens.serving.settings import ServeSettings

        settings = ServeSettings(watch_s=0, images=4, pixels=100_000, body_bytes=1 << 18, wait_ms=0)
        self.app = create_app({"m": ServedModel("m", corpus.model)}, settings)
        self.loop = asyncio.new_event_loop()
        self.life = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self.life.__aenter__())
        self.line: Any = None

    def close(self) -> None:
        self.loop.run_until_complete(self.life.__aexit__(None, None, None))
        self.loop.close()

    def ask(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], parts: list[bytes]
    ) -> int:
        status, waiting = 0, list(parts)

        async def receive() -> dict[str, Any]:
            if not waiting:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode("utf-8", "replace"), "query_string": query, "root_path": "", "scheme": "http",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        self.loop.run_until_complete(self.app(scope, receive, send))
        return status


_asked: dict[int, Asked] = {}
PATHS = ("/v1/predict", "/v1/predict", "/v1/predict", "/v1/models/m/predict", "/v1/models/x/predict", "/v1/models")


def asked_for(corpus: Corpus) -> Asked:
    """The application of this corpus."""
    if id(corpus) not in _asked:
        _asked[id(corpus)] = Asked(corpus)
    return _asked[id(corpus)]


def fuzz_request(corpus: Corpus, draw: Generator) -> None:
    """Bodies of every form around good and bad pictures, odd headers, queries and paths, in odd pieces."""
    method, path, query, headers, body = odd_request(corpus, draw)
    cut = draw.randrange(len(body) + 1)
    parts = draw.choice(([body], [body[:cut], body[cut:]], [b"", body], [body[:cut]]))
    judge(asked_for(corpus).ask(method, path, query, headers, parts))


def judge(status: int) -> None:
    """Answered, refused, or wrong."""
    if not 200 <= status < 500:
        raise Wrong(f"answered {status}")
    if status >= 300:
        raise ConvlensError(str(status))


def fuzz_connection(corpus: Corpus, draw: Generator) -> None:
    """One or two such requests as bytes on one connection, damaged, in odd pieces, with an early end."""
    asked = asked_for(corpus)
    if asked.line is None:
        from fuzzed_connection import Line

        asked.line = Line(asked.app, asked.loop)
    raw = b""
    for _ in range(draw.choice((1, 1, 2))):
        method, path, query, headers, body = odd_request(corpus, draw)
        target = path.encode("utf-8", "replace") + (b"?" + query if query else b"")
        lines = [b"%b %b HTTP/%b" % (method.encode(), target, draw.choice((b"1.1", b"1.1", b"1.1", b"1.0")))]
        raw += b"\r\n".join([*lines, *(b"%b: %b" % header for header in headers), b"", b""]) + body
    if draw.random() < 0.3:
        raw = mutated(draw, raw)
    if draw.random() < 0.2:
        raw = raw[: draw.randrange(len(raw) + 1)]
    cuts = sorted(draw.randrange(len(raw) + 1) for _ in range(draw.choice((0, 0, 1, 4))))
    pieces = [raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answers = asked.line.say([piece for piece in pieces if piece])
    for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers):
        if int(status) >= 500:
            raise Wrong(f"answered {int(status)}")
    if not answers.startswith(b"HTTP/1.1 200"):
        raise ConvlensError((answers[:12] or b"no answer").decode())


def odd_request(corpus: Corpus, draw: Generator) -> tuple[str, str, bytes, list[tuple[bytes, bytes]], bytes]:
    """Method, path, query, headers and body."""
    pictures = [draw.choice(corpus.pictures) for _ in range(draw.choice((1, 1, 2, 5)))]
    pictures = [mutated(draw, one) if draw.random() < 0.5 else one for one in pictures]
    way = draw.randrange(4)
    if way == 0:
        kind, body = draw.choice((b"image/png", b"application/octet-stream", b"")), pictures[0]
    elif way == 1:
        kind, body = (
            b"application/json",
            json.dumps({"images": [base64.b64encode(p).decode() for p in pictures]}).encode(),
        )
    elif way == 2:
        kind = b"multipart/form-data; boundary=bound"
        form = b'--bound\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n%b\r\n'
        body = b"".join(form % one for one in pictures) + b"--bound--\r\n"
    else:
        kind, body = mutated(draw, b"application/json; charset=utf-8"), draw.randbytes(draw.randrange(200))
    if draw.random() < 0.5:
        body = mutated(draw, body)
    headers = [(b"host", b"x"), (b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if draw.random() < 0.3:
        names = (
            b"x-request-id",
            b"content-length",
            b"content-type",
            b"authorization",
            b"transfer-encoding",
            b"expect",
        )
        headers.append((draw.choice(names), mutated(draw, b"abc123")))
    path = draw.choice(PATHS)
    if draw.random() < 0.1:
        path = mutated(draw, path.encode()).decode("utf-8", "replace")
    query = mutated(draw, b"top=3&x=1") if draw.random() < 0.2 else b""
    method = draw.choice(("POST",) * 9 + ("GET", "PUT", "HEAD", "OPTIONS"))
    return method, path, query, headers, body


TARGETS: dict[str, Callable[[Corpus, Generator], None]] = {
    "model": fuzz_model,
    "idx": fuzz_idx,
    "manifest": fuzz_manifest,
    "recipe": fuzz_recipe,
    "image": fuzz_image,
    "request": fuzz_request,
    "connection": fuzz_connection,
}


def one_input(corpus: Corpus, target: str, seed: int, number: int) -> str:
    """What became of an input: answered, or the name of our error. Anything else is raised."""
    started = time.perf_counter()
    try:
        TARGETS[target](corpus, random.Random(f"{seed} {target} {number}"))
        result = "answered"
    except ConvlensError as error:
        if not str(error):
            raise Wrong("an error without words") from error
        result = type(error).__name__
    spent = time.perf_counter() - started
    if spent > LONGEST_S:
        raise Wrong(f"took {spent:.1f} s")
    return result


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(target: str, count: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Try ``count`` inputs of a target; returns what became of them, and of the memory."""
    results: Counter[str] = Counter()
    wrong: list[str] = []
    grown: list[int] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        corpus = Corpus(Path(place))
        for number in range(first, first + count):
            try:
                results[one_input(corpus, target, seed, number)] += 1
            except Exception as error:  # what this program looks for
                wrong.append(f"{target} {number}: {type(error).__name__}: {str(error)[:200]}")
            if (number - first) * 5 % max(count, 5) < 5:
                grown.append(resident_bytes())
        if (asked := _asked.pop(id(corpus), None)) is not None:
            asked.close()
    grown.append(resident_bytes())
    return {
        "inputs": count,
        "seconds": round(time.perf_counter() - started, 1),
        "results": dict(results.most_common()),
        "wrong": wrong,
        "resident_mib": [round(size / 2**20, 1) for size in grown],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--only", type=int, help="one input, with its traceback")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.only is not None:
        with tempfile.TemporaryDirectory() as place:
            print(one_input(Corpus(Path(place)), chosen.target[0], chosen.seed, chosen.only))
        return 0
    found = {}
    for target in chosen.target or TARGETS:
        found[target] = run(target, chosen.count, chosen.seed)
        print(target, json.dumps(found[target]), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps({"seed": chosen.seed, **found}, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["wrong"] for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
