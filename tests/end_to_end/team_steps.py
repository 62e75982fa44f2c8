"""One epoch of a net with batch norm in float64, by as many processes as ``torchrun`` starts; writes the weights.

    torchrun --nproc-per-node 2 tests/end_to_end/team_steps.py OUT.safetensors

In float32 batch norm amplifies rounding from step to step, so that a comparison of several steps shows nothing; in
float64 what is left after an epoch is still far below any real difference.
"""

import sys

import torch
from safetensors.torch import save_file
from torch import nn

from convlens import data
from convlens.training.defaults import build, complete
from convlens.training.events import Events
from convlens.training.loop import Trainer
from convlens.training.machine import choose_machine
from convlens.training.recipe import Recipe
from convlens.training.session import make_trainer
from convlens.training.team import join


class Doubled(nn.Module):
    """The net in float64, for inputs of float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs.double())


def main(out: str) -> None:
    settings = {
        "data": "digits",
        "data_options": {"size": 16},
        "model": "convnet-s",
        "batch_size": 64,
        "epochs": 1,
    }
    settings |= {"optimizer": "sgd", "learning_rate": 0.05, "threads": 1, "precision": "float32"}
    dataset = data.open("digits", size=16)
    recipe = complete(Recipe.from_settings(settings), dataset)
    team = join()
    torch.manual_seed(0)
    saved = []
    trainer = make_trainer(
        Trainer,
        recipe,
        dataset,
        Doubled(build(recipe, dataset)),
        choose_machine(recipe),
        Events(),
        lambda checkpoint: saved.append(checkpoint.tensors),
        team,
    )
    trainer.run()
    if team.is_first:
        network = {name: tensor for name, tensor in saved[-1].items() if name.startswith("network/")}
        save_file({name: tensor.contiguous() for name, tensor in network.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1])
