"""The same network behind LitServe: ``python -m convlens.bench.serving.litserve_peer MODEL --port N``.

With its dynamic batching and base64 in JSON, which it reads faster than forms. Its workers are spawned, so the
class must be found by its module's name.
"""

from __future__ import annotations

import argparse
import base64
from typing import Any

import litserve
import torch

from convlens.bench.serving.peers import Model


class Api(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's hooks around `Model`."""

    path: str
    threads: int

    def setup(self, device: str) -> None:
        """In each worker."""
        if self.threads:
            torch.set_num_threads(self.threads)
        self.model = Model(self.path)

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """Without an annotation LitServe hands over the JSON."""
        return self.model.decode(base64.b64decode(request["image"]))

    def batch(self, inputs: Any) -> torch.Tensor:
        """Pictures that wait together."""
        return torch.stack(list(inputs))

    def predict(self, batch: Any) -> torch.Tensor:
        """Probabilities."""
        return self.model.answers(batch if batch.dim() == 4 else batch[None])

    def unbatch(self, output: Any) -> Any:
        """A row a picture."""
        return list(output)

    def encode_response(self, row: Any) -> dict[str, Any]:
        """The answer as JSON."""
        return self.model.named(row if row.dim() == 1 else row[0])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a model file by LitServe.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    api = Api(max_batch_size=chosen.batch, batch_timeout=chosen.wait)
    api.path, api.threads = chosen.model, chosen.threads
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=chosen.port, host="127.0.0.1", log_level="error", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    main()
