"""The same network behind other servers: ``python benchmarks/serving_peers.py fastapi|litserve MODEL --port N``.

* ``fastapi``: the endpoint that everybody writes: FastAPI, Pillow, PyTorch in inference mode with all cores, one
  picture at a time, raw bytes in, JSON out; uvicorn with uvloop and httptools, no access log.
* ``litserve``: LitServe with its dynamic batching; base64 in JSON, which it reads faster than forms.

The network is torch.nn's own layers with the weights of the model file.
"""

import argparse
import base64
import io
from typing import Any

import litserve
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
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
        picture = Image.open(io.BytesIO(raw)).convert(self.mode)
        if picture.size != self.size:
            picture = picture.resize(self.size, Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.array(picture))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    @torch.inference_mode()
    def answers(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch.float() * self.gain + self.offset).softmax(1)

    def named(self, row: torch.Tensor) -> dict[str, Any]:
        values, places = row.topk(5)
        top = [
            {"label": self.names[i], "probability": p}
            for p, i in zip(values.tolist(), places.tolist(), strict=True)
        ]
        return {"label": top[0]["label"], "probability": top[0]["probability"], "top": top}


def serve_fastapi(path: str, port: int) -> None:
    model = Model(path)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        picture = model.decode(await request.body())
        return model.named(model.answers(picture[None])[0])

    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Api(litserve.LitAPI):
    """LitServe's hooks around `Model`."""

    path: str
    threads: int

    def setup(self, device: str) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        self.model = Model(self.path)

    def decode_request(self, request):  # LitServe reads the annotation: without one it hands over the JSON
        return self.model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: Any) -> torch.Tensor:
        return torch.stack(list(inputs))

    def predict(self, batch: Any) -> torch.Tensor:
        return self.model.answers(batch if batch.dim() == 4 else batch[None])

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, row: Any) -> dict[str, Any]:
        return self.model.named(row if row.dim() == 1 else row[0])


def serve_litserve(path: str, port: int, batch: int, wait_s: float, threads: int) -> None:
    api = Api(max_batch_size=batch, batch_timeout=wait_s)
    api.path, api.threads = path, threads
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=port, host="127.0.0.1", log_level="error", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["fastapi", "litserve"])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.kind == "fastapi":
        serve_fastapi(chosen.model, chosen.port)
    else:
        serve_litserve(chosen.model, chosen.port, chosen.batch, chosen.wait, chosen.threads)
