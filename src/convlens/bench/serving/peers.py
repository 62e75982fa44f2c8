"""The same network behind the endpoint that everybody writes: FastAPI, Pillow, PyTorch in inference mode.

``python -m convlens.bench.serving.peers MODEL --port N``: all cores, one picture at a time, raw bytes in, JSON
out; uvicorn with uvloop and httptools, no access log. The network is torch.nn's own layers with its weights.
With ``--processes N`` so many processes of one thread each share the socket.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import socket
from typing import Any

import numpy as np
import torch
from fastapi import Request
from PIL import Image

from convlens import layers, load
from convlens.layers import ConvBlock2d


def as_torch(net: torch.nn.Module) -> torch.nn.Module:
    """Our layers as torch.nn's: the peers run PyTorch and nothing of ours."""
    for name, module in list(net.named_children()):
        if isinstance(module, ConvBlock2d):
            setattr(net, name, module.parts())
            as_torch(getattr(net, name))
            continue
        plain = getattr(torch.nn, type(module).__name__, None)
        if type(module).__module__.startswith(layers.__name__) and plain is not None:
            module.__class__ = plain
        as_torch(module)
    return net


class Model:
    """Decoding, the network and the answer, as a tutorial has them."""

    def __init__(self, path: str) -> None:
        predictor = load(path)
        self.names = predictor.class_names
        form = predictor.preprocessing
        self.mode = "L" if form.channels == 1 else "RGB"
        self.size = (form.size[1], form.size[0])
        gain, offset = form.coefficients()
        self.gain, self.offset = (torch.from_numpy(v).view(1, -1, 1, 1) for v in (gain, offset))
        self.net = as_torch(predictor.model).eval()

    def decode(self, raw: bytes) -> torch.Tensor:
        """A picture file as uint8 pixels of the net's size."""
        picture = Image.open(io.BytesIO(raw)).convert(self.mode)
        if picture.size != self.size:
            picture = picture.resize(self.size, Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.array(picture))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    @torch.inference_mode()
    def answers(self, batch: torch.Tensor) -> torch.Tensor:
        """Probabilities of pixels."""
        found: torch.Tensor = self.net(batch.float() * self.gain + self.offset).softmax(1)
        return found

    def named(self, row: torch.Tensor) -> dict[str, Any]:
        """The answer of one picture's probabilities."""
        values, places = row.topk(5)
        top = [
            {"label": self.names[i], "probability": p}
            for p, i in zip(values.tolist(), places.tolist(), strict=True)
        ]
        return {"label": top[0]["label"], "probability": top[0]["probability"], "top": top}


def serve_fastapi(path: str, listener: socket.socket, threads: int = 0) -> None:
    """Until the process is told to end."""
    import uvicorn
    from fastapi import FastAPI

    if threads:
        torch.set_num_threads(threads)
    model = Model(path)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        picture = model.decode(await request.body())
        return model.named(model.answers(picture[None])[0])

    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])


def main() -> None:
    """The command line of the plain endpoint."""
    parser = argparse.ArgumentParser(description="Serve a model file as everybody would.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    chosen = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", chosen.port), backlog=2048)
    if chosen.processes == 1:
        serve_fastapi(chosen.model, listener)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (chosen.model, listener, 1)
    workers = [context.Process(target=serve_fastapi, args=arguments) for _ in range(chosen.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
